"""Sampling equals diffusers' schedulers value for value: every latent that the network sees, and the last.

The network is one function of numbers for both. All of diffusers' arithmetic is left as it is, float32 tables included.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental import io_callback

from dit_video.arrays import Output
from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.objective import Gaussian, Uniform
from dit_video.diffusion.path import ConstantShift, DiscreteBetas, ExponentialShift, Linear
from dit_video.diffusion.prediction import X0, Epsilon, V, Velocity
from dit_video.diffusion.process import noise
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Sampler
from dit_video.diffusion.timestep_spacing import Leading, Linspace, Trailing
from dit_video.diffusion.variance import LearnedVariance

# NumPy's, for what diffusers does with tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (2, 1, 4, 4, 3)
KEYS = jax.random.split(jax.random.key(0), SHAPE[0])
X_1 = noise(jax.random.split(jax.random.key(1), SHAPE[0]), SHAPE[1:])

PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V(), "flow_prediction": Velocity()}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A sampler of ours and the scheduler that it is to equal; `options` are the scheduler's."""

    scheduler: str
    options: Mapping[str, Any]
    sampler: Sampler
    shift: Any = None
    set_timesteps: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def flow(self) -> bool:
        return "Flow" in self.scheduler or "use_flow_sigmas" in self.options

    @property
    def learned(self) -> bool:
        return self.options.get("variance_type") == "learned_range"

    def __str__(self) -> str:
        values = ",".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.scheduler}({values})-{self.sampler.num_steps}"


def betas(scheduler, sampler, **options):
    return Pair(scheduler, {"timestep_spacing": "leading", **options}, sampler)


def flow(scheduler, shift, sampler):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return Pair(scheduler, options, sampler, ConstantShift(shift=shift))


UNCLIPPED = {"clip_sample": False}
# diffusers spaces from the shifted sigma of level 1, then shifts again.
SD3_LAST = 3e-3 / (1 + 2e-3)
FLUX_MU = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)

PAIRS = [
    *(
        betas(
            name, sampler(num_steps=n, spacing=spacing), timestep_spacing=word, prediction_type=prediction, **UNCLIPPED
        )
        for name, sampler in (("DDPMScheduler", Ancestral), ("DDIMScheduler", DDIM))
        for n, word, spacing, prediction in (
            (20, "leading", Leading(), "epsilon"),
            (20, "trailing", Trailing(), "v_prediction"),
            (50, "leading", Leading(), "sample"),
        )
    ),
    betas("DDPMScheduler", Ancestral(num_steps=38, spacing=Linspace()), timestep_spacing="linspace", **UNCLIPPED),
    betas("DDPMScheduler", Ancestral(num_steps=7, spacing=Linspace()), timestep_spacing="linspace", **UNCLIPPED),
    *(
        betas("DDPMScheduler", Ancestral(num_steps=n, spacing=Leading()), variance_type="learned_range", **UNCLIPPED)
        for n in (10, 50)
    ),
    betas("EulerDiscreteScheduler", DDIM(num_steps=30, spacing=Leading())),
    betas("EulerDiscreteScheduler", DDIM(num_steps=30), timestep_spacing="trailing"),
    betas("EulerDiscreteScheduler", DDIM(num_steps=28, spacing=Linspace()), timestep_spacing="linspace"),
    Pair("FlowMatchEulerDiscreteScheduler", {}, Euler(num_steps=28, spacing=Linspace())),
    Pair(
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0},
        Euler(num_steps=28, spacing=Linspace(last=SD3_LAST)),
        ConstantShift(shift=3.0),
    ),
    Pair(
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True},
        Euler(num_steps=20),
        # The factor for the 16 positions of SHAPE is to be that of Flux for a thousand tokens.
        ExponentialShift(low=FLUX_MU, high=2.0, low_positions=16, high_positions=64),
        {"sigmas": np.linspace(1, 1 / 20, 20), "mu": FLUX_MU},
    ),
    *(
        betas(name, sampler(num_steps=n, spacing=spacing), timestep_spacing=word, prediction_type=prediction)
        for name, sampler in (("DPMSolverMultistepScheduler", DPMSolver), ("UniPCMultistepScheduler", UniPC))
        for n, word, spacing, prediction in (
            (10, "linspace", Linspace(drop_last=True), "epsilon"),
            (25, "linspace", Linspace(drop_last=True), "v_prediction"),
            (20, "trailing", Trailing(), "sample"),
            (2, "trailing", Trailing(), "epsilon"),
            (1, "trailing", Trailing(), "v_prediction"),
        )
    ),
    *(
        flow("UniPCMultistepScheduler", shift, UniPC(num_steps=n, spacing=Linspace(drop_last=True)))
        for shift, n in ((1.0, 10), (3.0, 20), (5.0, 50))
    ),
    *(
        flow("DPMSolverMultistepScheduler", shift, DPMSolver(num_steps=n, spacing=Trailing(first=0.999)))
        for shift, n in ((1.0, 10), (3.0, 20), (5.0, 50))
    ),
]


def network(x, t):
    """A smooth function of latents and t alone, in float64."""
    x = np.asarray(x, np.float64)
    return (0.6 * np.sin(2 * x + 3 * t) + 0.2 * np.cos(5 * t) * x).astype(np.float32)


def variance(x, t):
    """Where between its bounds the log-variance is."""
    return np.tanh(2 * np.asarray(x, np.float64) - t).astype(np.float32)


def ours(pair):
    """Times [n], latents that the network sees [n ...] and the last."""
    kind = "flow_prediction" if pair.flow else pair.options.get("prediction_type", "epsilon")
    path = Linear() if pair.flow else DiscreteBetas()
    objective = Gaussian(path=path, prediction=PREDICTIONS[kind], times=Uniform(), shift=pair.shift)
    objective = dataclasses.replace(objective, variance=LearnedVariance() if pair.learned else None)
    times, latents = [], []

    def record(x_t, t):
        times.append(t[0, 0])
        latents.append(np.asarray(x_t))
        return Output(network(x_t, t[0, 0]), variance(x_t, t[0, 0]))

    def denoise(x_t, t):
        like = jax.ShapeDtypeStruct(x_t.shape, jnp.float32)
        return io_callback(record, Output(like, like), x_t, t, ordered=True)

    x_0 = jax.jit(lambda: pair.sampler(denoise, objective, X_1, KEYS))()
    return np.array(times), np.stack([*latents, x_0])


def theirs(pair, monkeypatch):
    scheduler = getattr(diffusers, pair.scheduler)(**pair.options)
    scheduler.set_timesteps(**({"num_inference_steps": pair.sampler.num_steps} | dict(pair.set_timesteps)))
    levels = scheduler.sigmas[:-1] if pair.flow else (scheduler.timesteps + 1) / 1000
    times = levels.double().numpy()
    drawn = iter(range(len(times)))

    def same_noise(*_, **__):
        return torch.tensor(np.asarray(noise(jax.vmap(jax.random.fold_in, (0, None))(KEYS, next(drawn)), SHAPE[1:])))

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", same_noise)
    x_t, latents = torch.tensor(np.asarray(X_1)), []
    if pair.scheduler == "EulerDiscreteScheduler":
        # Its latents are ours over alpha.
        x_t = x_t * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for timestep, t in zip(scheduler.timesteps, times):
        seen = scheduler.scale_model_input(x_t, timestep) if hasattr(scheduler, "scale_model_input") else x_t
        latents.append(seen.numpy())
        output = np.concatenate([network(seen, t), variance(seen, t)], axis=1) if pair.learned else network(seen, t)
        x_t = scheduler.step(torch.tensor(output), timestep, x_t).prev_sample
    return times, np.stack([*latents, x_t.numpy()])


def relative_error(a, b):
    """The largest difference over the steps, each relative to the largest number there."""
    return max(np.max(np.abs(x - y)) / np.max(np.abs(y)) for x, y in zip(a, b))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_sampler_equals_the_scheduler_of_diffusers(pair, monkeypatch):
    our_times, our_latents = ours(pair)
    their_times, their_latents = theirs(pair, monkeypatch)
    np.testing.assert_allclose(our_times, their_times, atol=2e-7)
    assert relative_error(our_latents, their_latents) < 1e-5
