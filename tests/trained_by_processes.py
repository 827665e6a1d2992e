"""An experiment that trains in a moment, by one process or by several: a network on tokens of noise, nothing on disk.

Not a test: tests/training_processes.py starts processes that train it. Three variables make a process misbehave:
SECONDS_PER_RECORD makes its data slow, UNREADABLE makes record number so much of it damaged, and FULL_UNTIL leaves it
no room for files but small ones until a file of that name says that something has failed.
"""

import dataclasses
import hashlib
import os
import resource
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from toys import WIDTH

from dit_video.data.dataset import Data
from dit_video.data.record import Examples, Record, Split
from dit_video.data.sources import SourceInfo
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import constrain
from dit_video.evaluation.evaluators import HeldOutError
from dit_video.experiment import Experiment
from dit_video.nn.linear import linear
from dit_video.tasks.media import Video
from dit_video.tasks.task import GENERATE, RECONSTRUCT, VALIDATE, Function, Task
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW

NUM_RECORDS, NUM_FRAMES, SIZE = 24, 4, 8
# So that each process has a file of its own in a checkpoint: what is smaller is put into one that all read.
WIDE = 512


class NoiseExamples(Examples):
    """Records whose frames are noise, a function of their number."""

    def __len__(self) -> int:
        return NUM_RECORDS

    def __getitem__(self, index: int) -> Record:
        time.sleep(float(os.environ.get("SECONDS_PER_RECORD", "0")))
        if str(index) == os.environ.get("UNREADABLE"):
            raise ValueError(f"record {index} is damaged")
        video = np.random.default_rng(index).integers(0, 256, (NUM_FRAMES, SIZE, SIZE, 3), np.uint8)
        return Record(key=str(index), video=video, num_frames=NUM_FRAMES, fps=8.0, label=0)

    @property
    def num_frames(self):
        return np.full(NUM_RECORDS, NUM_FRAMES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """A source of them, the same in both splits."""

    def open(self, split: Split) -> Examples:
        return NoiseExamples()

    def info(self) -> SourceInfo:
        digest = hashlib.sha256(b"noise").hexdigest()
        return SourceInfo(
            class_names=(),
            num_records=dict.fromkeys(Split, NUM_RECORDS),
            digest=digest,
            split_digest=dict.fromkeys(Split, digest),
        )


class TwoLayers(nnx.Module):
    """A residual network on tokens, with parameters and activations on every axis of the mesh."""

    def __init__(self, *, rngs: nnx.Rngs):
        dtype = jnp.dtype("float32")
        self.widen = linear(WIDTH, WIDE, ("embed", "mlp"), rngs=rngs, dtype=dtype)
        self.narrow = linear(WIDE, WIDTH, ("mlp", "embed"), rngs=rngs, dtype=dtype)

    def __call__(self, x):
        hidden = constrain(nnx.gelu(self.widen(x)), "batch", "tokens", "mlp")
        # Every token learns of all others, wherever they are.
        hidden = hidden + hidden.mean(axis=1, keepdims=True)
        return constrain(x + self.narrow(hidden), "batch", "tokens", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MendTokens(Task):
    """To find tokens again behind noise that is added to them.

    The metric `rows` is exact, and another one wherever a batch has other rows, or the same in another order.
    """

    def init(self, rng):
        return TwoLayers(rngs=nnx.Rngs(rng))

    def loss(self, model, frozen, batch, rng, step):
        x = _tokens(batch.video)
        error = model(x + 0.1 * jax.random.normal(rng, x.shape)) - x
        sums = batch.video.astype(jnp.int32).sum((1, 2, 3, 4)) % 1000
        return jnp.mean(jnp.square(error)), {"rows": jnp.sum(sums * (1 + jnp.arange(len(sums))))}

    def validate(self, model, frozen, batch, rngs):
        x = _tokens(batch.video)
        return {"error": jnp.mean(jnp.square(model(x) - x), axis=(1, 2))}

    def functions(self):
        return {
            VALIDATE: Function(lambda model, frozen, batch, keys, shape: self.validate(model, frozen, batch, keys)),
            GENERATE: Function(lambda model, frozen, batch, keys, shape: batch.video, Video),
            RECONSTRUCT: Function(lambda model, frozen, batch, keys, shape: batch.video, Video),
        }


def _tokens(video):
    return video.reshape(len(video), -1, WIDTH).astype(jnp.float32) / 128 - 1


def _full_until(path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    while not (path.is_file() and "failed" in path.read_text()):
        time.sleep(0.1)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


if "FULL_UNTIL" in os.environ:
    threading.Thread(target=_full_until, args=(Path(os.environ["FULL_UNTIL"]),), daemon=True).start()


def get_config(arg: str = "") -> Experiment:
    del arg
    return Experiment(
        task=MendTokens(),
        data=Data(
            source=Noise(),
            clips=ClipTransform(num_frames=NUM_FRAMES, size=(SIZE, SIZE)),
            batch_size=8,
            num_threads=1,
        ),
        optimizer=AdamW(learning_rate=1e-2),
        evaluators={"held-out": HeldOutError(every=6, num_clips=8, batch_size=8)},
        schedule=Schedule(num_steps=12, log_every=1, save_every=6),
    )
