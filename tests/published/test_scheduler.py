"""Schedulers of published pipelines, as their files say them: which sampler of ours each is."""

import diffusers
import pytest

from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.objective import Gaussian, UniformLevels, rectified_flow
from dit_video.diffusion.path import ConstantShift, DiscreteBetas
from dit_video.diffusion.prediction import Epsilon, V
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler
from dit_video.diffusion.timestep_spacing import Leading, Linspace, Trailing
from dit_video.published.scheduler import NUM_STEPS, sampled_as

DDPM = Gaussian(path=DiscreteBetas(), prediction=Epsilon(), times=UniformLevels())
FLOW = rectified_flow()
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def saved(name: str, **options) -> dict:
    """What diffusers writes into scheduler_config.json."""
    return {"_class_name": name} | dict(getattr(diffusers, name)(**options).config)


@pytest.mark.parametrize(
    ("name", "options", "objective", "sampler"),
    [
        ("DDIMScheduler", {}, DDPM, DDIM(num_steps=NUM_STEPS, spacing=Leading())),
        ("DDPMScheduler", {"timestep_spacing": "trailing"}, DDPM, Ancestral(num_steps=NUM_STEPS, spacing=Trailing())),
        ("EulerDiscreteScheduler", {}, DDPM, DDIM(num_steps=NUM_STEPS, spacing=Linspace())),
        ("DPMSolverMultistepScheduler", {}, DDPM, DPMSolver(num_steps=NUM_STEPS, spacing=Linspace(drop_last=True))),
        (
            "FlowMatchEulerDiscreteScheduler",
            {"shift": 3.0},
            FLOW,
            Euler(num_steps=NUM_STEPS, spacing=Linspace(last=3e-3 / (1 + 2e-3))),
        ),
        (
            "UniPCMultistepScheduler",
            FLOW_SIGMAS | {"flow_shift": 5.0},
            FLOW,
            UniPC(num_steps=NUM_STEPS, spacing=Linspace(drop_last=True)),
        ),
        (
            "DPMSolverMultistepScheduler",
            FLOW_SIGMAS,
            FLOW,
            DPMSolver(num_steps=NUM_STEPS, spacing=Trailing(first=0.999)),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scheduler_is_the_sampler_that_equals_it(name, options, objective, sampler):
    """The pairs are those that tests/diffusion/test_peers.py holds equal."""
    clip = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    sampled = sampled_as(saved(name, **options, **clip), objective)
    assert sampled.sampler == sampler
    assert sampled.not_followed == ()
    if objective is FLOW:
        assert sampled.objective.shift == ConstantShift(shift=options.get("shift", options.get("flow_shift", 1.0)))
    else:
        assert sampled.objective == DDPM


def test_what_a_network_predicts_comes_from_the_scheduler_too():
    config = saved("DDIMScheduler", prediction_type="v_prediction", beta_end=0.01, clip_sample=False)
    objective = sampled_as(config, DDPM).objective
    assert objective.prediction == V()
    assert objective.path == DiscreteBetas(beta_last=0.01)


def test_without_a_scheduler_a_network_is_sampled_as_its_kind_is():
    assert sampled_as({}, DDPM).sampler == DDIM(num_steps=NUM_STEPS, spacing=Leading())
    assert sampled_as({}, FLOW) == type(sampled_as({}, FLOW))(FLOW, Euler(num_steps=NUM_STEPS), ())


@pytest.mark.parametrize(
    ("config", "objective", "not_followed"),
    [
        ({"_class_name": "DDIMScheduler"}, DDPM, ("clip_sample=True",)),
        (saved("DDIMScheduler", clip_sample=False, steps_offset=1), DDPM, ("steps_offset=1",)),
        (saved("FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True), FLOW, ("use_karras_sigmas=True",)),
        (saved("UniPCMultistepScheduler", **FLOW_SIGMAS, solver_type="bh1"), FLOW, ("solver_type='bh1'",)),
    ],
)
def test_fields_that_are_not_followed_are_listed(config, objective, not_followed):
    assert sampled_as(config, objective).not_followed == not_followed


@pytest.mark.parametrize(
    ("config", "objective", "message"),
    [
        (
            saved("DDIMScheduler", beta_schedule="scaled_linear"),
            DDPM,
            "beta_schedule='scaled_linear': must be 'linear'",
        ),
        (saved("DDIMScheduler", num_train_timesteps=4000), DDPM, "num_train_timesteps=4000: must be 1000"),
        (saved("FlowMatchEulerDiscreteScheduler"), DDPM, "_class_name='FlowMatchEulerDiscreteScheduler': must be DDIM"),
        (saved("DDIMScheduler"), FLOW, "_class_name='DDIMScheduler': must be FlowMatch"),
        (saved("UniPCMultistepScheduler"), FLOW, "use_flow_sigmas=False: must be True"),
        (saved("UniPCMultistepScheduler", timestep_spacing="leading"), DDPM, "timestep_spacing='leading': must be"),
    ],
)
def test_another_path_is_refused_by_name(config, objective, message):
    with pytest.raises(ValueError, match=message):
        sampled_as(config, objective)
