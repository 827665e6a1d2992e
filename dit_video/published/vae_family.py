"""Families of published VAEs: what they share, which is all but parameter names and fields of config.json."""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dit_video.nn.module import Definition, define
from dit_video.published.family import Family, Pair, Shape, different_fields
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.task import Task
from dit_video.vae.codec import LatentCodec
from dit_video.vae.vae import VAEConfig
from dit_video.weights.config_json import number_of, numbers_of, refused
from dit_video.weights.names import Dialect, Row, Table, vector

# float32 has what is divided by it.
_LEAST_SCALE = 1e-6
# Of latents that are compared: frames after the first, rows and columns.
_MOST_CELLS = (3, 8, 8)


class Place(NamedTuple):
    """Location in diffusers of the parameters of one of our layers.

    Attributes:
        names: of their layer, or of the layers that ours is made of, side by side along the outputs.
        rank: axes of their kernel: 5 for a convolution over frames, 4 over rows and columns, 2 over nothing.
        scale: what follows the name of a norm.
        scale_rank: axes of that, all but the first of size 1.
    """

    names: tuple[str, ...]
    rank: int
    scale: str = "weight"
    scale_rank: int = 1


class Statistics(NamedTuple):
    """Mean and standard deviation of unwhitened latents, per channel; float32, as in a codec."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of_diffusers(cls, config: Mapping[str, Any], channels: int, *, scaling_factor: float = 1.0) -> "Statistics":
        """Reads the latent normalisation of pipelines: (z - shift_factor) * scaling_factor, or per channel.

        Args:
            scaling_factor: default for a config without one.

        Raises:
            ValueError: a field is no number, or not one for each channel; names it.
        """
        scale = number_of(config, "scaling_factor", scaling_factor)
        shift = number_of(config, "shift_factor", 0.0) if config.get("shift_factor") is not None else 0.0
        if scale < _LEAST_SCALE:
            raise refused("scaling_factor", scale, "must be greater than 0")
        if config.get("latents_mean") is None and config.get("latents_std") is None:
            mean, std = (shift,) * channels, (1.0,) * channels
        else:
            if shift:
                raise ValueError(f"config.json: shift_factor={shift} and latents_mean: published VAEs have one of them")
            mean, std = (numbers_of(config, name, channels) for name in ("latents_mean", "latents_std"))
        if min(std) <= 0:
            raise refused("latents_std", std, "must be greater than 0")
        return cls(
            tuple(float(np.float32(value)) for value in mean), tuple(float(np.float32(value / scale)) for value in std)
        )

    def diffusers_config(self) -> dict[str, Any]:
        """Fields of config.json for the same normalisation in pipelines: one number, or one for each channel."""
        if len(set(self.mean)) == len(set(self.std)) == 1:
            mean, std = self.mean[0], self.std[0]
            inverse = next(x for x in _decimals(1.0 / std) if np.float32(1.0 / x) == np.float32(std))
            return {
                "scaling_factor": inverse,
                "shift_factor": _shortest(mean) if mean else None,
                "latents_mean": None,
                "latents_std": None,
            }
        return {"scaling_factor": 1.0, "shift_factor": None} | self.per_channel()

    def usage(self) -> str:
        """Model-card text on the latent normalisation."""
        fields = {name: value for name, value in self.diffusers_config().items() if value is not None}
        if "latents_mean" in fields:
            return "Diffusion models see `(z - latents_mean) / latents_std` of config.json, per channel."
        shift = f"(z - {fields['shift_factor']})" if "shift_factor" in fields else "z"
        return f"Diffusion models see `{shift} * {fields['scaling_factor']}`."

    def per_channel(self) -> dict[str, list[float]]:
        """The normalisation as one number for each channel, in fields of config.json."""
        return {
            "latents_mean": [_shortest(value) for value in self.mean],
            "latents_std": [_shortest(value) for value in self.std],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEFamily(Family):
    """A published VAE, with the published statistics of its latents.

    Attributes:
        statistics: diffusion models see (z - mean) / std.
    """

    config_type: ClassVar[type[VAEConfig]]

    config: VAEConfig
    statistics: Statistics

    @classmethod
    def of_task(cls, task: Task) -> "VAEFamily | None":
        """The family of a VAE task's network, without latent normalisation: a task does not know the statistics."""
        if not isinstance(task, Autoencode) or not isinstance(task.vae, cls.config_type):
            return None
        channels = task.vae.latent_channels
        return cls(config=task.vae, statistics=Statistics((0.0,) * channels, (1.0,) * channels))

    @classmethod
    def of_codec(cls, codec: LatentCodec) -> "VAEFamily | None":
        """The family of a codec's VAE, with its statistics; None where it is of another kind."""
        if not isinstance(codec.vae.config, cls.config_type):
            return None
        mean, std = (tuple(np.asarray(part[...]).tolist()) for part in (codec.mean, codec.std))
        return cls(config=codec.vae.config, statistics=Statistics(mean, std))

    def define(self, dtype: DTypeLike = jnp.float32) -> Definition:
        return _define(self.config, dtype)

    def table(self) -> Table:
        rows = []
        for name, shape in self.define().shapes.items():
            layer, _, kind = name.rpartition(".")
            rows.append(self.row(layer, kind, shape.shape))
        return Table(rows=tuple(rows))

    def row(self, layer: str, kind: str, shape: tuple[int, ...]) -> Row:
        """Row of the parameter `kind` (kernel, bias, scale) of one of our layers."""
        return row_of(layer, kind, shape, self.place(layer))

    @abc.abstractmethod
    def place(self, layer: str) -> Place:
        """Location in diffusers of one of our layers."""

    def differences(self, task: Task) -> list[str]:
        if not isinstance(task, Autoencode):
            return [f"config.task=Autoencode(vae={self.config}) (it is {type(task).__name__})"]
        if type(task.vae) is not type(self.config):
            return [f"config.task.vae={self.config} (it is {task.vae})"]
        return different_fields("config.task.vae", self.config, task.vae)

    def compared(self, shape: Shape) -> Shape:
        return few_frames(shape, self.config)

    def pairs(self, params: Mapping[str, Array | np.ndarray], theirs: Any, shape: Shape) -> Iterator[Pair]:
        rng = np.random.default_rng(0)
        pixels = np.clip(rng.normal(0.0, 0.5, (1, *shape, 3)), -1.0, 1.0).astype(np.float32)
        z = rng.standard_normal((1, *self.config.latent_shape(shape), self.config.latent_channels), np.float32)
        definition = self.define()

        @jax.jit
        def compute(params: Mapping[str, Array], pixels: Array, z: Array) -> tuple[dict[str, Array], Array, Array]:
            vae = definition.bind(params)
            return vae.layers(pixels, z), vae.encode(pixels), jnp.clip(vae.decode(z), -1.0, 1.0)

        layers, moments, decoded = compute(dict(params), pixels, z)
        with _listening(theirs, {name: self.place(name).names[-1] for name in layers}) as heard:
            their_moments = self.their_moments(theirs, pixels)
            their_pixels = np.clip(self.their_pixels(theirs, z), -1.0, 1.0)
        for name, their_layer in heard.items():
            ours = np.asarray(layers[name])
            # Theirs has no axis of frames where ours has one picture in every clip, and more frames where ours has
            # those alone that are normalised together.
            yield (
                Pair(name, ours[:, 0], their_layer)
                if their_layer.ndim == 4
                else Pair(name, ours, their_layer[:, : ours.shape[1]])
            )
        yield Pair("moments", np.asarray(moments), their_moments)
        yield Pair("pixels", np.asarray(decoded), their_pixels)

    def their_moments(self, theirs: Any, pixels: Float[np.ndarray, "B *THW C"]) -> Float[np.ndarray, "B *thw m"]:
        """Moments from diffusers' encoder."""
        import torch

        moments = theirs.encode(torch.from_numpy(channels_first(pixels))).latent_dist.parameters
        return channels_last(moments.numpy())

    def their_pixels(self, theirs: Any, z: Float[np.ndarray, "B *thw c"]) -> Float[np.ndarray, "B *THW C"]:
        """Pixels from diffusers' decoder."""
        import torch

        return channels_last(theirs.decode(torch.from_numpy(channels_first(z))).sample.numpy())


@functools.cache
def _define(config: VAEConfig, dtype: DTypeLike) -> Definition:
    # Cached: tables use it many times, and it is made by tracing the whole network.
    return define(lambda key: config.build(dtype=dtype, rngs=nnx.Rngs(key)))


def few_frames(shape: Shape, config: VAEConfig) -> Shape:
    """Shape of a small clip that a CPU encodes and decodes quickly, for comparisons."""
    frames, rows, columns = config.compression
    frames *= config.frame_group
    t, h, w = ((n - first) // cell for n, first, cell in zip(shape, (1, 0, 0), (frames, rows, columns)))
    return 1 + min(t, _MOST_CELLS[0]) * frames, min(h, _MOST_CELLS[1]) * rows, min(w, _MOST_CELLS[2]) * columns


def channels_first(x: Float[np.ndarray, "B *cells C"]) -> Float[np.ndarray, "B C *cells"]:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def channels_last(x: Float[np.ndarray, "B C *cells"]) -> Float[np.ndarray, "B *cells C"]:
    return np.moveaxis(x, 1, -1)


@contextlib.contextmanager
def _listening(module: Any, names: Mapping[str, str]) -> Iterator[dict[str, np.ndarray]]:
    """Captures outputs of submodules of a torch module by our names, channels last.

    A module that takes a clip in chunks calls its parts once for each, and theirs are the frames one after the other.
    """
    heard: dict[str, np.ndarray] = {}

    def keep(name: str, output: Any) -> None:
        chunk = channels_last((output[0] if isinstance(output, tuple) else output).detach().numpy())
        heard[name] = np.concatenate([heard[name], chunk], axis=1) if name in heard else chunk

    with contextlib.ExitStack() as stack:
        for ours, theirs in names.items():
            part = module.get_submodule(theirs)
            hook = part.register_forward_hook(lambda _module, _inputs, output, name=ours: keep(name, output))
            stack.callback(hook.remove)
        yield heard


def row_of(layer: str, kind: str, shape: tuple[int, ...], place: Place) -> Row:
    """Row of a parameter of a convolution or norm, here and in torch."""
    ours = f"{layer}.{kind}"
    if kind == "bias":
        return vector(ours, shape, _diffusers(place, "bias"))
    if kind == "scale":
        theirs = (*shape, *(1,) * (place.scale_rank - 1))
        order = tuple(range(place.scale_rank))
        return Row(ours=ours, our_shape=shape, theirs=_diffusers(place, place.scale), shape=theirs, order=order)
    *window, inputs, outputs = shape
    window = window[5 - place.rank :]
    return Row(
        ours=ours,
        our_shape=shape,
        theirs=_diffusers(place, "weight"),
        shape=(outputs, inputs, *window),
        order=(*range(2, place.rank), 1, 0),
    )


def _diffusers(place: Place, end: str) -> dict[Dialect, tuple[str, ...]]:
    return {Dialect.DIFFUSERS: tuple(f"{name}.{end}" for name in place.names)}


def translate(name: str, words: Mapping[str, str]) -> str:
    """Translates a dotted name word by word."""
    name = f".{name}."
    for ours, theirs in words.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name.strip(".")


def _decimals(value: float) -> Iterator[float]:
    """Decimal roundings of a value with more and more digits, the last of which is exact."""
    return (float(f"{value:.{digits}g}") for digits in range(1, 18))


def _shortest(value: float) -> float:
    """The shortest decimal number that is this float32."""
    return next(x for x in _decimals(value) if np.float32(x) == np.float32(value))
