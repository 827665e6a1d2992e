"""Task: what is learnt. The interface of all tasks, with a default for all but `init` and `loss`.

A task is the only place where a network, an objective and a batch meet; the loop never learns what is inside. One of
your own is a frozen dataclass of this type in the experiment's file: `init` and `loss` are all that training needs.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.inventory import Inventory
from dit_video.data.record import Split
from dit_video.data.signals import examples_of
from dit_video.diffusion.sampler import Sampler
from dit_video.diffusion.unmasking import Order
from dit_video.dit.network import TransformerConfig
from dit_video.encoders.image import PretrainedImage
from dit_video.encoders.text import PretrainedText
from dit_video.nn.patches import PatchSize
from dit_video.tasks.known_frames import Pattern
from dit_video.tasks.media import Media
from dit_video.tasks.opener import Opener
from dit_video.tasks.roll_out import RollOut
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.vae import VAEConfig

# By name an array, or a `Mean` in those of a loss.
Metrics = dict[str, Any]
# (frames, height, width) of a clip in pixels.
ClipShape = tuple[int, int, int]

# Names of functions that evaluators and commands of this package call.
VALIDATE, GENERATE, RECONSTRUCT, EDIT = "validate", "generate", "reconstruct", "edit"
LIKELIHOOD, REFINE = "likelihood", "refine"
ROLL_OUT = "roll-out"


class Function(NamedTuple):
    """Function of a trained task, such as sampling, compiled once for each shape of a batch.

    Attributes:
        call: (model, frozen, batch, keys, shape) -> a pytree of arrays [B ...]. Row i uses keys[i] alone, so that it is
            the same in any batch; `shape` is that of the clips to be made, known when it is compiled.
        medium: what it makes, which writes itself to files; None where it makes numbers.
    """

    call: Callable[[Any, Any, Batch, Key[Array, "B"], ClipShape], Any]
    medium: type[Media] | None = None


class Learnt(NamedTuple):
    """What the weights of a task are, by field, for who starts from those of another (`train --init_from`).

    Attributes:
        function: what decides which function parameters stand for, beside their shapes; where one of it is another,
            the same weights compute something else. Memory, speed and rounding are no part of it.
        target: what the network was trained to output, such as the objective: it may be another, and is then said.
    """

    function: Mapping[str, Any]
    target: Mapping[str, Any]


class Encoders(NamedTuple):
    """Published encoders of a task, None where it has none.

    Attributes:
        text: those that embed captions.
        image: that of first frames.
    """

    text: PretrainedText | None = None
    image: PretrainedImage | None = None


class SamplingOptions(NamedTuple):
    """How samples are asked to be made where that differs from what a run says; None: as it says.

    Attributes:
        guidance: its scale. `history`: that of guidance on known frames.
        steps_apart: how many steps of the sampler a latent frame is behind the one before it.
    """

    sampler: type[Sampler] | type[Order] | None = None
    num_steps: int | None = None
    guidance: float | None = None
    history: float | None = None
    steps_apart: int | None = None


class Task(abc.ABC):
    """What is learnt. Values of this type are fields of an experiment.

    `frozen` is whatever trained parts the task uses but does not train (a codec); it travels as an argument, so that
    its weights are never baked into a compiled program. `model` is the module that `init` makes; its type, and that of
    `frozen`, are the task's own business.
    """

    # What training asks.

    @abc.abstractmethod
    def init(self, rng: Key[Array, ""]) -> nnx.Module:
        """The network with fresh parameters."""

    @abc.abstractmethod
    def loss(
        self, model: Any, frozen: Any, batch: Batch, rng: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of one batch and scalars to record."""

    def check(self, data: Data, mesh: Mesh | None) -> None:
        """Rules between the task, the data and the mesh, checked before anything is read or compiled.

        Those between fields of the task alone are its constructor's, so that `dataclasses.replace` keeps them too.

        Raises:
            ValueError: names the field, the value and the remedy.
        """
        del data, mesh

    def check_data(self, inventories: Mapping[Split, Inventory]) -> list[str]:
        """Warnings of what the data lack for this task; by default none. Called before the train step is compiled.

        Raises:
            ValueError: the task cannot be learnt from them; names the field, both numbers and what to change.
        """
        del inventories
        return []

    def open(self, opener: Opener) -> tuple["Task", Any]:
        """The frozen parts with their trained weights, and the task with the digests of these."""
        del opener
        return self, None

    def blank(self, rng: Key[Array, ""]) -> Any:
        """The frozen parts with random weights: for shapes, FLOPs and proofs, where no trained ones are needed."""
        del rng
        return None

    # What it can do once it is trained.

    def functions(self) -> Mapping[str, Function]:
        """Functions of the trained task by name, for evaluators and commands: "validate", "generate", "reconstruct".

        "validate" returns errors by name, one value per clip. "generate" makes one clip, text or other medium for each
        row of a batch, and "reconstruct" clips through the codec alone: the best that "generate" can look. "edit" makes
        the clips of a batch anew from some noise level on (`with_strength`), "roll-out" continues them by the actions
        that follow. "likelihood" returns nats, tokens and bytes of each row of text, and "refine" what "generate" makes
        after each of its passes.
        """
        return {}

    def judges(self) -> Mapping[str, Any]:
        """Evaluators of the task's own for `dit-video evaluate run`, by name; those of this package are chosen by the
        names of `functions` (evaluation/defaults.py).
        """
        return {}

    def describe(self) -> Mapping[str, Any]:
        """Description of the task for evaluation cards, as JSON values: codec, sampler, guidance."""
        return {}

    @property
    def paired(self) -> bool:
        """Whether "generate" is shown pixels of each clip of the batch, so that those and its own are pairs."""
        return False

    # What plans, proofs and exports ask, where there are no data and no devices.

    def example(self, data: Data, batch_size: int) -> Batch:
        """A batch of zeros of the shapes of training."""
        T, (H, W) = data.clips.num_frames, data.clips.size
        video = np.zeros((batch_size, T, H, W, 3), np.uint8)
        return Batch(video=video, signals=examples_of(data.signals, batch_size))

    def random(self, rng: np.random.Generator, batch: Batch) -> Batch:
        """A batch of the shapes of `batch` with random values that the task can be trained on; on the host."""
        return fill(rng, batch)

    def num_tokens(self, data: Data) -> int | None:
        """Tokens of one clip, for rates; None where there are none."""
        del data
        return None

    def in_float32(self) -> "Task":
        """The same task computed in float32, so that errors of sharding stand out from rounding."""
        return self

    @property
    def backbone(self) -> TransformerConfig | None:
        """The transformer in which most of a step is spent, for plans: depth, heads, rematerialisation."""
        return None

    def with_backbone(self, backbone: TransformerConfig) -> "Task":
        """The same task with another `backbone`, for plans that change its rematerialisation."""
        raise TypeError(f"{type(self).__name__}.backbone is None: there is none to replace by {backbone}")

    def learnt(self) -> Learnt:
        """What the weights are; by default the `backbone`, where there is one."""
        return Learnt({} if self.backbone is None else {"backbone": self.backbone.function}, {})

    # What `dit-video sample` asks.

    @property
    def patch_size(self) -> PatchSize:
        """Latent cells (frames, rows, columns) that make one token; clips that are made must divide into them."""
        return (1, 1, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        """The signals that "generate" is prompted by."""
        return ()

    @property
    def guided(self) -> bool:
        """Whether guidance leads away from a null condition."""
        return False

    def check_prompt(self, signals: Mapping[str, Any]) -> None:
        """Raises ValueError where a prompt has a value that the task was not trained on."""
        del signals

    def with_negative(self, frozen: Any, signals: Mapping[str, Any]) -> Any:
        """The frozen parts with another null condition: what guidance leads away from."""
        raise ValueError(f"a {type(self).__name__} has no guidance that could lead away from a negative prompt")

    def with_sampling(self, options: SamplingOptions) -> "Task":
        """The same task sampled otherwise; what is None stays.

        Raises:
            ValueError: it has no such choice; names the option.
        """
        for name, value in options._asdict().items():
            if value is not None:
                raise ValueError(f"--{name}: a {type(self).__name__} has no such choice; leave it out")
        return self

    def continuing_images(self) -> "Task | None":
        """The task that makes clips which continue a picture; None where it cannot."""
        return None

    def with_known(self, pattern: Pattern) -> tuple["Task", str | None]:
        """The task that makes clips of which some is known, `Batch.known`, and a warning where it may be poor at that.

        Args:
            pattern: what is known of them.

        Raises:
            ValueError: it was not trained for that; says what is missing.
        """
        raise ValueError(f"a {type(self).__name__} makes no clips of which the {pattern} is known")

    def roll_out(self, shape: ClipShape, *, guided: bool | None = None) -> RollOut:
        """How a trained world goes forward frame by frame, by actions.

        Args:
            shape: of the clips that it was trained on.
            guided: whether guidance may be changed, which takes twice the work; None: where the task has some.

        Raises:
            ValueError: the task is no world.
        """
        del shape, guided
        raise ValueError(
            f"a {type(self).__name__} goes forward by no actions; that is for a Denoise with past=PastFrames(), a "
            "network that is causal over frames and a condition on actions"
        )

    def with_strength(self, strength: float) -> "Task":
        """The task whose "edit" makes a share of (0, 1] of a clip anew, from that noise level on."""
        raise ValueError(f"a {type(self).__name__} makes no clips anew, to {strength:g} or at all; leave it out")

    # What prepares data and weights asks.

    def trained_codec(self) -> TrainedCodec | None:
        """The codec whose latents are learnt; None where pixels or tokens are."""
        return None

    def with_codec(self, codec: TrainedCodec) -> "Task":
        """The same task on the latents of another codec."""
        raise TypeError(f"{type(self).__name__}: learns no latents; there is no codec to replace by {codec}")

    def encoders(self) -> Encoders:
        """The published encoders of captions and first frames that are used and not trained."""
        return Encoders()

    def with_encoders(self, encoders: Encoders) -> "Task":
        """The same task with its encoders in other places."""
        raise TypeError(f"{type(self).__name__}: uses no published encoders; there are none to replace by {encoders}")

    def latent_denoiser(self) -> Any:
        """The task as a `Denoise`, whose network other formats and libraries know; None where it is none."""
        return None

    @property
    def learnt_vae(self) -> VAEConfig | None:
        """The VAE that is learnt, where the run is to be the codec of others: `model.vae` is its module."""
        return None


def latent_cells(vae: VAEConfig, data: Data) -> tuple[int, int, int]:
    """(t, h, w) of the latents of a training clip.

    Raises:
        ValueError: clips do not fill whole latent cells.
    """
    clip = (data.clips.num_frames, *data.clips.size)
    try:
        return vae.latent_shape(clip)
    except ValueError as error:
        raise ValueError(f"config.data.clips (num_frames, size) = {clip}: {error}") from error


def fill(rng: np.random.Generator, tree: Any) -> Any:
    """A pytree of shapes with random values: normal numbers, bytes of any value, other integers zero."""

    def value(leaf: Any) -> np.ndarray:
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, leaf.shape, np.uint8)
        if np.issubdtype(leaf.dtype, np.integer):
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.map(value, tree)
