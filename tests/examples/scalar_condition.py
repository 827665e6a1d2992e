"""A condition of one's own: a number for each clip, here its speed, which modulates every block beside the noise level.

    dit-video train --config=scalar_condition.py:vae --workdir=vae
    dit-video train --config=scalar_condition.py --workdir=runs/speed
    dit-video sample --config=scalar_condition.py --workdir=runs/speed --cond speed=0.5,2 --out=speeds.mp4

The number of a clip is read from its caption ("speed 0.7"); a row of a table of captions, an action or what a detector
has measured would be read in the same way.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video import (
    AdamW,
    Autoencode,
    ClipTransform,
    Condition,
    Data,
    Denoise,
    DiTConfig,
    Euler,
    Experiment,
    Guidance,
    HeldOutError,
    MovingDigits,
    Schedule,
    Signal,
    TrainedCodec,
    VideoVAEConfig,
)
from dit_video.nn.embed import VectorEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed(Signal):
    """The signal, float32 [B]: how fast a clip is; the digits of this example are as fast as their caption is long."""

    def open(self):
        return lambda clips: np.array([len(clip.caption) / 40 for clip in clips], np.float32)

    def example(self, batch_size):
        return np.full((batch_size,), np.nan, np.float32)

    def parse(self, word, class_names, warn):
        return np.array([float(word)], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedCondition(Condition):
    """The condition: the number and its square; not a number where none is known, which is also the null condition."""

    @property
    def reads(self):
        return "speed"

    def read(self, signals):
        return jnp.asarray(signals[self.reads])

    def empty(self, cond):
        return jnp.full_like(cond, jnp.nan)

    def inputs(self):
        return {"speed": "1 is usual, not a number for none"}

    def label_embedding(self, hidden_size, *, rngs):
        return SpeedEmbedding(hidden_size, rngs=rngs)


class SpeedEmbedding(nnx.Module):
    def __init__(self, hidden_size, *, rngs):
        self.embed = VectorEmbedding(3, hidden_size, dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, speed):
        known = ~jnp.isnan(speed)
        number = jnp.where(known, speed, 0.0)
        return self.embed(jnp.stack([known.astype(jnp.float32), number, number**2], axis=-1))


VAE = VideoVAEConfig(
    channels=8, multipliers=(1,), strides=((4, 8, 8),), num_blocks=1, num_decoder_blocks=1, latent_channels=4
)


def get_config(arg="dit"):
    digits = MovingDigits(directory="digits", num_train=24, num_held_out=8, size=16, num_frames=5, digit_size=10)
    clips = ClipTransform(num_frames=5, size=(16, 16))
    denoise = Denoise(
        network=DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1)),
        codec=TrainedCodec(vae=VAE, run="vae"),
        condition=SpeedCondition(drop_rate=0.2),
        sampler=Euler(num_steps=4),
        guidance=Guidance(scale=2.0),
    )
    return Experiment(
        task=Autoencode(vae=VAE) if arg == "vae" else denoise,
        data=Data(source=digits, clips=clips, batch_size=8, signals={"speed": Speed()}),
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Schedule(num_steps=20, log_every=10),
        evaluators={"held-out": HeldOutError(every=20, num_clips=8, batch_size=8)},
    )
