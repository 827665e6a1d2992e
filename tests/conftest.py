"""What tests share: eight devices, and tasks so small that compiling them is all that costs.

Environment first: JAX reads it once, when it is imported.
"""

import dataclasses
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# Compiling is most of the time here, and this halves it. Laws hold at any optimization level.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from dit_video.data.batch import Batch
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.nn.embed import linear
from dit_video.sharding import MESH_AXES, MeshShape
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.denoise import Denoise, TrainedCodec
from dit_video.vae.codec import LatentCodec
from dit_video.vae.video_vae import VideoVAEConfig

WIDTH = 8


def small_mesh(num_devices: int = 1, **axes: int) -> Mesh:
    """A mesh over the first devices; `axes` as in MeshShape."""
    sizes = MeshShape(**axes).resolve(num_devices)
    devices = np.array(jax.devices()[:num_devices]).reshape(sizes)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


class Lines(nnx.Module):
    """y = x W + b."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.line = linear(WIDTH, WIDTH, ("embed", "mlp"), rngs=rngs, dtype=jnp.dtype("float32"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.line(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitLines:
    """A task that fulfils the protocol with next to nothing: the halves of `moments` are x and y of a regression.

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

    def validate(self, model, frozen, batch, rng):
        x, y = jnp.split(batch.moments, 2, axis=-1)
        return {"error": jnp.mean(jnp.square(model(x) - y), axis=(1, 2, 3, 4))}

    def generate(self, model, frozen, batch, rngs, shape):
        """Every pixel of a clip is its label."""
        pixels = batch.label[:, None, None, None, None].astype(jnp.uint8)
        return jnp.broadcast_to(pixels, (len(batch.label), *shape, 3))

    def reconstruct(self, model, frozen, batch):
        return batch.video


def line_batch(index: int, *, size: int = 8) -> Batch:
    """Batch number `index` of a data set without end."""
    numbers = np.random.default_rng(index).normal(size=(size, 1, 1, 1, 2 * WIDTH))
    return Batch(moments=numbers.astype(np.float32), label=np.arange(size, dtype=np.int32))


@pytest.fixture
def fit_lines() -> FitLines:
    return FitLines()


@pytest.fixture(scope="session")
def vae_config() -> VideoVAEConfig:
    """Compresses 4x8x8, as the default does."""
    return VideoVAEConfig(channels=8, multipliers=(1, 1, 1), num_blocks=1, num_decoder_blocks=1, latent_channels=4)


@pytest.fixture(scope="session")
def autoencode(vae_config) -> Autoencode:
    return Autoencode(vae=vae_config)


@pytest.fixture(scope="session")
def denoise(vae_config) -> Denoise:
    return Denoise(
        network=DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1)),
        codec=TrainedCodec(vae=vae_config, run="runs/none"),
        condition=ClassCondition(num_classes=3),
    )


@pytest.fixture(scope="session")
def codec(denoise) -> LatentCodec:
    """With random weights."""
    return jax.jit(denoise.codec.blank)(jax.random.key(0))


@pytest.fixture(scope="session")
def clips() -> Batch:
    """Eight clips of five frames of 16x16, and their labels."""
    video = np.random.default_rng(0).integers(0, 256, (8, 5, 16, 16, 3), np.uint8)
    return Batch(video=video, label=np.arange(8, dtype=np.int32) % 3)


@pytest.fixture(scope="session")
def cached() -> Batch:
    """Moments of eight clips, as a latent cache holds them, and their labels."""
    moments = np.random.default_rng(0).normal(size=(8, 2, 2, 2, 8)).astype(np.float32)
    return Batch(moments=moments, label=np.arange(8, dtype=np.int32) % 3)
