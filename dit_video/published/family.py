"""Model families: the interface between published networks and ours, used by import and export.

A family is a class of diffusers, our network of the same mathematics, and one table of names between them.
"""

import abc
import contextlib
import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from dit_video.diffusion.objective import Gaussian
from dit_video.dit.condition import Condition, EmbeddedText
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.network import Network, NetworkConfig
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.text import PretrainedText
from dit_video.nn.module import Definition, define
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import Task
from dit_video.weights.config_json import count_of
from dit_video.weights.names import Dialect, Source, Table

# Along frames, rows and columns.
_MOST_PATCHES = (4, 12, 12)

# (t, h, w) of latents for a denoiser, (T, H, W) of pixels for a VAE.
Shape = tuple[int, int, int]
Denoiser = TypeVar("Denoiser", bound="DenoiserFamily")


class Pair(NamedTuple):
    """An output computed by both libraries from the same input, in one layout."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(abc.ABC):
    """A published network: config, parameter names and checks, without its weights."""

    diffusers_class: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def of_diffusers(cls, config: Mapping[str, Any]) -> "Family | None":
        """Reads a config.json of diffusers; None where it is of another class.

        Raises:
            ValueError: of this class, but of a kind that nobody published; names the field.
        """

    def informed_by(self, source: Source) -> "Family":
        """Completes the config from the tensors, where config.json leaves something open."""
        del source
        return self

    @classmethod
    def of_official(cls, source: Source, task: Task | None) -> "Family | None":
        """Recognises official weights by names and shapes; None where they are of something else.

        What shapes do not tell is as in `task`, where there is one.
        """
        del source, task
        return None

    @classmethod
    @abc.abstractmethod
    def of_task(cls, task: Task) -> "Family | None":
        """The family of a task's network; None where it is of another kind.

        Raises:
            ValueError: of this kind, but none that was published; names the first field that says so.
        """

    @abc.abstractmethod
    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        """The network that is saved in a run."""

    @abc.abstractmethod
    def table(self) -> Table:
        """Name table of its parameters in other libraries."""

    @abc.abstractmethod
    def differences(self, task: Task) -> list[str]:
        """Command-line overrides with which a task would have this network, with the reasons."""

    @abc.abstractmethod
    def diffusers_config(self, shape: Shape) -> dict[str, Any]:
        """Makes config.json of diffusers' class.

        Raises:
            ValueError: the class computes another function, or not of this shape; names the field and the remedy.
        """

    @abc.abstractmethod
    def compared(self, shape: Shape) -> Shape:
        """Shape of a small input for comparisons on a CPU, still with several places and frames."""

    @abc.abstractmethod
    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: Shape) -> Iterator[Pair]:
        """Runs this network and diffusers' on the same random input; yields pairs of layers, then of outputs.

        Args:
            theirs: the diffusers module, in evaluation mode and without gradients.
        """

    @abc.abstractmethod
    def usage(self, shape: Shape) -> str:
        """Usage section of a model card: how diffusers' class is called. Markdown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserFamily(Family):
    """A published denoiser.

    Attributes:
        channels: of the latents that it predicts.
        known: channels of known frames that it takes beside those of x_t.
    """

    config: NetworkConfig
    channels: int
    condition: Condition | None
    known: AsChannels | None = None

    @abc.abstractmethod
    def objective(self) -> Gaussian:
        """The objective that it was trained with as published."""

    def usual_latents(self, config: Mapping[str, Any]) -> Shape:
        """Latent shape (t, h, w) that a config.json names; other shapes are accepted."""
        size = count_of(config, "sample_size", 64)
        return 1, size, size

    def compared(self, shape: Shape) -> Shape:
        return few_cells(shape, self.config.patch_size)

    def text_encoders(self, pipeline: str) -> PretrainedText | None:
        """Text encoders in the folder of a diffusers pipeline; None where the network reads no text."""
        del pipeline
        return None

    def image_encoder(self, pipeline: str) -> PretrainedImage | None:
        """Image encoder in the folder of a diffusers pipeline; None where the network reads no image tokens."""
        del pipeline
        return None

    def condition_on(self, text: PretrainedText) -> Condition | None:
        """The text condition for embeddings of these encoders."""
        return None if self.condition is None else _condition_on(self.condition, text)

    @classmethod
    def of_most(cls: type[Denoiser], source: Source, task: Task | None) -> Denoiser | None:
        """The family of a task's network, if most of its official tensors exist: `names.check` names missing ones."""
        try:
            network = None if task is None else cls.of_task(task)
        except ValueError:
            return None
        if not isinstance(network, cls):
            return None
        expected = network.table().expected(Dialect.OFFICIAL)
        same = sum(name in source and source[name].shape == shape for name, shape in expected.items())
        return network if same > len(expected) / 2 else None

    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        return define(lambda key: self._build(key, dtype))

    def _build(self, key: Array, dtype: DTypeLike) -> Network:
        return self.config.build(self.channels, self.condition, known=self.known, dtype=dtype, rngs=nnx.Rngs(key))

    def differences(self, task: Task) -> list[str]:
        if not isinstance(task, Denoise):
            return [f"config.task=Denoise(...) (it is {type(task).__name__})"]
        lines = []
        if type(task.network) is not type(self.config):
            lines.append(f"config.task.network={self.config} (it is a {type(task.network).__name__})")
        else:
            expected = dataclasses.replace(self.config, remat=task.network.remat)
            lines += different_fields("config.task.network", expected, task.network)
        if task.codec.vae.latent_channels != self.channels:
            lines.append(
                f"config.task.codec with latents of {self.channels} channels (it has {task.codec.vae.latent_channels})"
            )
        if self.condition is None or type(task.condition) is not type(self.condition):
            if task.condition != self.condition:
                lines.append(f"config.task.condition={self.condition} (it is {task.condition})")
        else:
            wanted = dataclasses.replace(self.condition, drop_rate=task.condition.drop_rate)
            lines += different_fields("config.task.condition", wanted, task.condition)
        shown = None if task.known is None else task.known.channels
        if self.known is None or shown is None:
            if shown != self.known:
                lines.append(f"config.task.known.shown={self.known} (it is {shown})")
        else:
            lines += different_fields("config.task.known.shown", self.known, shown)
        return lines


def _condition_on(condition: Condition, text: PretrainedText) -> Condition:
    if not isinstance(condition, EmbeddedText):
        return condition
    # Without CLIP the vector for a caption is the mean of its tokens.
    pooled_size = condition.pooled_size if text.clip_l or text.clip_g else condition.hidden_size
    return dataclasses.replace(condition, num_tokens=text.num_tokens, pooled_size=pooled_size)


def few_cells(shape: Shape, patch_size: Shape) -> Shape:
    """`shape`, cut to so few patches that a CPU computes attention between all of them quickly."""
    t, h, w = (min(n, most * p) for n, most, p in zip(shape, _MOST_PATCHES, patch_size))
    return t, h, w


def different_fields(where: str, expected: Any, actual: Any) -> list[str]:
    """Command-line overrides that turn the dataclass `actual` into `expected`, of the same type."""
    lines = []
    for field in dataclasses.fields(expected):
        there, here = getattr(expected, field.name), getattr(actual, field.name)
        if type(there) is type(here) and dataclasses.is_dataclass(there):
            lines += different_fields(f"{where}.{field.name}", there, here)
        elif there != here:
            there, here = (value.value if isinstance(value, enum.Enum) else value for value in (there, here))
            lines.append(f"--{where}.{field.name}={there} (it is {here})")
    return lines


@contextlib.contextmanager
def listening(module: Any, names: Sequence[str], *, which: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Captures outputs of submodules of a torch module by forward hooks; of several outputs number `which`."""
    heard: dict[str, np.ndarray] = {}

    def hear(name: str):
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            heard[name] = (output[which] if isinstance(output, tuple) else output).detach().float().numpy()

        return keep

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(module.get_submodule(name).register_forward_hook(hear(name)).remove)
        yield heard
