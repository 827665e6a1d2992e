"""What tests share: eight devices, and tasks so small that compiling them is all that costs.

Environment first: JAX reads it once, when it is imported.
"""

import contextlib
import gc
import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of the time here. Laws hold however loops are made and optimized, so it is done in the quickest way.
# Of two flags of one name the later counts: processes that tests start add how many devices they have.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_use_fusion_emitters=false",
        # In one piece: each of up to 32 pieces of a program costs the compiler its start again.
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_force_host_platform_device_count=8",
    ]
)
# Nothing is kept in the home of who runs the tests.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gcs_server import GCS, serving
from sample_videos import waves
from stores import small_store
from toys import SMALL_DENOISE, SMALL_VAE

from dit_video.data.batch import Batch
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.export.weights import Content, Denoiser, Origin, write_weights
from dit_video.ingest.ingest import ingest
from dit_video.nn.module import define, params_of
from dit_video.tasks.autoencode import Autoencode
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAE, VideoVAEConfig
from dit_video.video.encode import encode_mp4

# Tracing makes millions of objects and few cycles: looking for these as often as Python does is a tenth of the time.
gc.set_threshold(50_000, 20, 100)
# At each draw of a key Flax asks a tracer for its sharding. The AttributeError that it catches says in words which
# operations the tracer comes from, and looking for them takes longer than to trace a network. It is only a message, of
# no public name: where JAX has none, or another, tests are slower.
with contextlib.suppress(ImportError, AttributeError):
    importlib.import_module("jax._src.interpreters.partial_eval").DynamicJaxprTracer._origin_msg = lambda self: ""


@pytest.fixture(scope="session")
def vae_config() -> VideoVAEConfig:
    """Compresses 4x8x8, as the default does, in one level."""
    return SMALL_VAE


@pytest.fixture(scope="session")
def autoencode(vae_config) -> Autoencode:
    return Autoencode(vae=vae_config)


@pytest.fixture(scope="session")
def denoise() -> Denoise:
    return SMALL_DENOISE


@pytest.fixture(scope="session")
def codec(denoise) -> LatentCodec:
    """With random weights."""
    return jax.jit(denoise.codec.blank)(jax.random.key(0))


@pytest.fixture(scope="session")
def clips() -> Batch:
    """Eight clips of five frames of 16x16, and their labels."""
    video = np.random.default_rng(0).integers(0, 256, (8, 5, 16, 16, 3), np.uint8)
    return Batch(video=video, signals={"label": np.arange(8, dtype=np.int32) % 3})


@pytest.fixture(scope="session")
def cached() -> Batch:
    """Moments of eight clips, as a latent cache holds them, and their labels."""
    moments = np.random.default_rng(0).normal(size=(8, 2, 2, 2, 8)).astype(np.float32)
    return Batch(moments=moments, signals={"label": np.arange(8, dtype=np.int32) % 3})


@pytest.fixture
def store(tmp_path):
    """A folder that can be filled up."""
    with small_store(tmp_path / "store") as made:
        yield made


@pytest.fixture(scope="session")
def gcs() -> Iterator[GCS]:
    """A server for buckets. TensorStore asks for its address once in a process."""
    with serving() as (server, where):
        os.environ |= {
            "TENSORSTORE_GCS_HTTP_URL": where,
            "STORAGE_EMULATOR_HOST": where,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "of nobody",
            "FSSPEC_GCS_TOKEN": "anon",
            # It asks for the kind of a bucket by gRPC.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        yield server


@pytest.fixture
def bucket(gcs) -> GCS:
    """A server whose buckets are empty."""
    gcs.clear()
    return gcs


@pytest.fixture
def messages() -> list[str]:
    """What was told to the user."""
    return []


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder with eight mp4 files of 20 frames in two class folders."""
    folder = tmp_path / "videos"
    for index in range(8):
        path = folder / ("cat" if index % 2 else "dog") / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mp4(waves(index, num_frames=20), 10.0))
    return folder


@pytest.fixture
def video_set(videos: Path, tmp_path: Path) -> Path:
    """That folder, ingested; a quarter or so is held out."""
    ingest([videos], tmp_path / "set", held_out_fraction=0.3)
    return tmp_path / "set"


def trained(build) -> nnx.Module:
    """No parameter is zero: an untrained DiT predicts zeros, whatever its weights are."""
    definition = define(build)
    rng = np.random.default_rng(0)
    return definition.bind(
        {n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}
    )


@pytest.fixture(scope="session")
def content() -> Content:
    """What an export takes of a run of a small DiT."""
    task = Denoise(
        network=DiTConfig(hidden_size=32, depth=2, num_heads=2),
        codec=TrainedCodec(vae=SMALL_VAE, run="runs/vae"),
        condition=ClassCondition(num_classes=3),
    )
    vae = trained(lambda key: VideoVAE(SMALL_VAE, rngs=nnx.Rngs(key)))
    return Content(
        denoiser=Denoiser(task, trained(task.init)),
        codec=LatentCodec(vae, mean=np.arange(4.0), std=np.asarray([0.5, 1.0, 2.0, 4.0])),
        clip=(5, 32, 32),
        origin=Origin(run="dit", step=7, ema=True, fingerprint="0123456789abcdef", task={"seed": 1}),
        signals={"label": np.zeros(1, np.int32)},
    )


@pytest.fixture(scope="session")
def exported(content, tmp_path_factory):
    """A folder of weights; tests that spoil files copy it."""
    folder = tmp_path_factory.mktemp("exported")
    _, num_tensors = write_weights(content, folder)
    assert num_tensors == len(params_of(content.denoiser.network)) + len(params_of(content.codec))
    return folder


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium, for tests of pages (-m browser)."""
    from playwright.sync_api import sync_playwright

    where = os.environ.get("CHROMIUM") or shutil.which("chromium")
    assert where, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        # In a container Chromium has no sandbox of its own to make; the page is ours.
        browser = playwright.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield browser
        browser.close()
