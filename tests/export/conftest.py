import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import SMALL_VAE

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.export.weights import Content, Denoiser, Origin, write_weights
from dit_video.nn.module import define, params_of
from dit_video.tasks.denoise import Denoise, TrainedCodec
from dit_video.vae.codec import LatentCodec
from dit_video.vae.video_vae import VideoVAE

TASK = Denoise(
    network=DiTConfig(hidden_size=32, depth=2, num_heads=2),
    codec=TrainedCodec(vae=SMALL_VAE, run="runs/vae"),
    condition=ClassCondition(num_classes=3),
)


def trained(build) -> nnx.Module:
    """No parameter is zero: an untrained DiT predicts zeros, whatever its weights are."""
    definition = define(build)
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


@pytest.fixture(scope="session")
def content() -> Content:
    vae = trained(lambda key: VideoVAE(SMALL_VAE, rngs=nnx.Rngs(key)))
    return Content(
        denoiser=Denoiser(TASK, trained(TASK.init)),
        codec=LatentCodec(vae, mean=np.arange(4.0), std=np.asarray([0.5, 1.0, 2.0, 4.0])),
        clip=(5, 32, 32),
        origin=Origin(run="dit", step=7, ema=True, fingerprint="0123456789abcdef", task={"seed": 1}),
    )


@pytest.fixture(scope="session")
def exported(content, tmp_path_factory):
    """A folder of weights; tests that spoil files copy it."""
    folder = tmp_path_factory.mktemp("exported")
    _, num_tensors = write_weights(content, folder)
    assert num_tensors == len(params_of(content.denoiser.network)) + len(params_of(content.codec))
    return folder
