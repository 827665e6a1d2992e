"""Proof that devices here can train: two steps of a small DiT on each, with a loss that is the same on all of them."""

import dataclasses
import math
import time

import jax
import numpy as np

from dit_video.data.dataset import Data
from dit_video.data.sources import NoData
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MeshShape, make_mesh, place_whole
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DiTConfig
from dit_video.experiment import Experiment
from dit_video.run.frozen import with_random_frozen
from dit_video.run.open_run import program_of
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig

NUM_STEPS = 2
# Rounding of matrix products in bfloat16, or in TF32, moves the loss by less.
TOLERANCE = 0.02

EXPERIMENT = Experiment(
    task=Denoise(
        network=DiTConfig(hidden_size=32, depth=1, num_heads=1, patch_size=(1, 1, 1)),
        codec=TrainedCodec(
            vae=VideoVAEConfig(
                channels=8,
                multipliers=(1,),
                strides=((4, 8, 8),),
                num_blocks=1,
                num_decoder_blocks=1,
                latent_channels=4,
            ),
            run="none",
        ),
        condition=ClassCondition(num_classes=3),
    ),
    data=Data(source=NoData(), clips=ClipTransform(num_frames=5, size=(16, 16)), batch_size=2),
    optimizer=AdamW(),
    schedule=Schedule(num_steps=NUM_STEPS),
)


@dataclasses.dataclass(frozen=True)
class DeviceCheck:
    """Two train steps on one device.

    Attributes:
        losses: of the steps.
        seconds: compilation included.
        failed: why they could not be made, or what is wrong with them; None where nothing is.
    """

    device: str
    losses: tuple[float, ...]
    seconds: float
    failed: str | None


def check_device(device: jax.Device, reference: DeviceCheck | None = None) -> DeviceCheck:
    """Trains two steps on a device; `reference` is another device that did."""
    began = time.perf_counter()
    name = f"{device.platform}:{device.id} {device.device_kind}"
    try:
        losses = _train(device)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        return DeviceCheck(name, (), time.perf_counter() - began, str(error).partition("\n")[0])
    return DeviceCheck(name, losses, time.perf_counter() - began, wrong_with(losses, reference))


def wrong_with(losses: tuple[float, ...], reference: DeviceCheck | None) -> str | None:
    """What is wrong with the losses of a device; None where they are those of `reference`, within `TOLERANCE`."""
    if not all(map(math.isfinite, losses)):
        return f"losses {losses} are not finite"
    if reference is None or not reference.losses:
        return None
    if max(abs(a / b - 1) for a, b in zip(losses, reference.losses)) > TOLERANCE:
        return f"losses {losses} are not those of {reference.device}, {reference.losses}"
    return None


def _train(device: jax.Device) -> tuple[float, ...]:
    mesh = make_mesh(MeshShape(data=1), [device])
    experiment, frozen = with_random_frozen(EXPERIMENT, mesh)
    program, task = program_of(experiment, mesh), experiment.task
    batch = place_whole(task.random(np.random.default_rng(0), task.example(experiment.data, 2)), mesh)
    state, losses = program.init(0), []
    for _ in range(NUM_STEPS):
        state, metrics = program.step(state, frozen, batch, 0)
        losses.append(float(metrics["loss"]))
    return tuple(losses)
