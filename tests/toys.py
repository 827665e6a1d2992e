"""The smallest things that a law can be stated about: meshes, a task that compiles in a moment, batches without end."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.record import Examples, Record, Split
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MESH_AXES, MeshShape
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.experiment import Experiment
from dit_video.nn.linear import linear
from dit_video.nn.module import Params
from dit_video.tasks.evaluator import EvaluationData
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.media import Video
from dit_video.tasks.task import GENERATE, RECONSTRUCT, VALIDATE, Function, Task
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig

WIDTH = 8

# Compresses 4x8x8, as the default does, in one level; and the same in two.
SMALL_VAE = VideoVAEConfig(
    channels=8,
    multipliers=(1,),
    strides=((4, 8, 8),),
    num_blocks=1,
    num_decoder_blocks=1,
    latent_channels=4,
)
TWO_LEVEL_VAE = dataclasses.replace(SMALL_VAE, multipliers=(1, 2), strides=((2, 4, 4), (2, 2, 2)))
SMALL_DENOISE = Denoise(
    network=DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1)),
    codec=TrainedCodec(vae=SMALL_VAE, run="runs/none"),
    condition=ClassCondition(num_classes=3),
)


class Weights(NamedTuple):
    """What a run keeps that is not trained any more."""

    step: int
    params: Params
    ema: Params


def small_mesh(num_devices: int = 1, **axes: int) -> Mesh:
    """A mesh over the first devices; `axes` as in MeshShape."""
    sizes = MeshShape(**axes).resolve(num_devices)
    devices = np.array(jax.devices()[:num_devices]).reshape(sizes)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def untrained(task: Task, *, size: tuple[int, int] = (16, 16), batch_size: int = 16) -> Experiment:
    """An experiment on data that are nowhere: to be checked, planned and compiled, not trained."""
    return Experiment(
        task=task,
        data=Data(
            source=VideoSet(directory="nowhere"),
            clips=ClipTransform(num_frames=5, size=size),
            batch_size=batch_size,
            cache=None if task.trained_codec() is None else LatentCache(directory="nowhere"),
        ),
        optimizer=AdamW(),
        schedule=Schedule(num_steps=1000),
    )


class Lines(nnx.Module):
    """y = x W + b."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.line = linear(WIDTH, WIDTH, ("embed", "mlp"), rngs=rngs, dtype=jnp.dtype("float32"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.line(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitLines(Task):
    """A task of next to nothing: the halves of `moments` are x and y of a regression.

    Attributes:
        noise: deviation of what is added to x; 0 makes the loss a function of the batch alone.
    """

    noise: float = 0.0

    def init(self, rng):
        return Lines(rngs=nnx.Rngs(rng))

    def loss(self, model, frozen, batch, rng, step):
        x, y = jnp.split(batch.moments, 2, axis=-1)
        error = model(x + self.noise * jax.random.normal(rng, x.shape)) - y
        loss = jnp.mean(jnp.square(error))
        return loss, {"error": jnp.mean(jnp.abs(error)), "draw": jax.random.uniform(rng)}

    def functions(self):
        return {
            VALIDATE: Function(lambda model, frozen, batch, keys, shape: self.validate(model, frozen, batch, keys)),
            GENERATE: Function(self.generate, Video),
            RECONSTRUCT: Function(lambda model, frozen, batch, keys, shape: batch.video, Video),
        }

    def validate(self, model, frozen, batch, rngs):
        x, y = jnp.split(batch.moments, 2, axis=-1)
        error = jnp.mean(jnp.square(model(x) - y), axis=(1, 2, 3, 4))
        return {"error": error, "draw": jax.vmap(jax.random.uniform)(rngs)}

    def generate(self, model, frozen, batch, rngs, shape):
        """Every pixel of a clip is its label."""
        label = batch.signals["label"]
        return jnp.broadcast_to(label[:, None, None, None, None].astype(jnp.uint8), (len(label), *shape, 3))


def line_batch(index: int, *, size: int = 8) -> Batch:
    """Batch number `index` of a data set without end."""
    numbers = np.random.default_rng(index).normal(size=(size, 1, 1, 1, 2 * WIDTH))
    return Batch(moments=numbers.astype(np.float32), signals={"label": np.arange(size, dtype=np.int32)})


def judged_by(clips: Batch) -> EvaluationData:
    """Both splits hold `clips`; a last batch is filled up by repeating its last row, as the loader does."""

    def batches(split: Split, num_clips: int, batch_size: int) -> Iterator[tuple[Batch, int]]:
        for start in range(0, num_clips, batch_size):
            valid = min(batch_size, num_clips - start)
            rows = np.minimum(np.arange(start, start + batch_size), num_clips - 1)
            yield jax.tree.map(lambda x, rows=rows: x[rows], clips), valid

    shape = clips.video.shape[1:4] if clips.video is not None else (1, 1, 1)

    def digest(split: Split, num_clips: int) -> str:
        content = [np.ascontiguousarray(x[:num_clips]).tobytes() for x in jax.tree.leaves(clips)]
        return hashlib.sha256(split.encode() + b"".join(content)).hexdigest()

    return EvaluationData(
        batches=batches,
        digest=digest,
        splits=tuple(Split),
        shape=shape,
        rates=(8.0,),
        protocol={"cut": "whole"},
        references={"set": "toys"},
    )


class Videos(Examples):
    """Records of decoded frames in memory."""

    def __init__(self, videos: Sequence[np.ndarray]):
        self._videos = videos

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Record:
        return Record(key=str(index), video=self._videos[index], num_frames=len(self._videos[index]), fps=10.0, label=0)

    @property
    def num_frames(self):
        return np.array([len(video) for video in self._videos])


class Sized(Videos):
    """Records of noise in memory, of the given frames, heights and widths; the label of each is its number."""

    def __init__(self, extents: Sequence[tuple[int, int, int]]):
        self._extents = np.array(extents)
        super().__init__([_noise(number, tuple(extent)) for number, extent in enumerate(extents)])

    def __getitem__(self, index: int) -> Record:
        return dataclasses.replace(super().__getitem__(index), label=index)

    @property
    def sizes(self):
        return self._extents[:, 1:]


def _noise(seed: int, extent: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*extent, 3), np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness:
    """An extractor that compiles in a moment: brightness of eight strips of a clip, its spread and its motion.

    It counts in whole numbers, so that the order of summing is all one.

    Attributes:
        gain: multiplies every feature; decides them, so it stands in the protocol.
    """

    gain: float = 1.0

    @property
    def metric(self) -> str:
        return "FBD"

    @property
    def min_frames(self) -> int:
        return 2

    def protocol(self) -> dict[str, Any]:
        return {"features": "brightness", "gain": self.gain}

    def on(self, mesh):
        del mesh  # it has no weights to place

        @jax.jit
        def extract(video):
            x = video.astype(jnp.int32)
            strips = [part.sum((1, 2, 3, 4)) for part in jnp.array_split(x, 8, axis=3)]
            motion = jnp.abs(jnp.diff(x, axis=1)).sum((1, 2, 3, 4))
            sums = jnp.stack([*strips, jnp.square(x - 128).sum((1, 2, 3, 4)) // 256, motion], axis=1)
            return self.gain * sums.astype(jnp.float32) / x[0].size

        return extract
