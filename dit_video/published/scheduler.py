"""diffusers schedulers: scheduler_config.json read as an objective and a sampler; steps and guidance of pipelines."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dit_video.diffusion.multistep import DPMSolver, UniPC
from dit_video.diffusion.objective import Gaussian
from dit_video.diffusion.path import ConstantShift, DiscreteBetas
from dit_video.diffusion.prediction import X0, Epsilon, Prediction, V
from dit_video.diffusion.sampler import DDIM, Ancestral, Euler, Sampler
from dit_video.diffusion.timestep_spacing import Leading, Linspace, Spacing, Trailing
from dit_video.weights.config_json import shortened
from dit_video.weights.folder import read_json

NUM_STEPS = 50
# No number of a scheduler is as large, and an integer may be larger than any float.
_MOST = 1e6

Known = TypeVar("Known")


class Usual(NamedTuple):
    """How a pipeline samples where its user says nothing. Its negative prompt is then the empty text."""

    num_steps: int
    guidance_scale: float


# Of the call of each class of pipelines in diffusers; no file of a pipeline has them.
PIPELINES: Mapping[str, Usual] = {
    "DiTPipeline": Usual(50, 4.0),
    "LattePipeline": Usual(50, 7.5),
    "StableDiffusion3Pipeline": Usual(28, 7.0),
    "WanPipeline": Usual(50, 5.0),
    "WanImageToVideoPipeline": Usual(50, 5.0),
}

_PREDICTIONS: dict[str, Prediction] = {"epsilon": Epsilon(), "v_prediction": V(), "sample": X0()}
_SINGLE_STEP: dict[str, Spacing] = {"leading": Leading(), "trailing": Trailing(), "linspace": Linspace()}
_MULTISTEP: dict[str, Spacing] = {"trailing": Trailing(), "linspace": Linspace(drop_last=True)}

# Of paths that are a table: the sampler of a class, its spacings by name, and the name that stands for none.
_ON_TABLES: dict[str, tuple[type[Sampler], dict[str, Spacing], str]] = {
    "DDIMScheduler": (DDIM, _SINGLE_STEP, "leading"),
    "DDPMScheduler": (Ancestral, _SINGLE_STEP, "leading"),
    "EulerDiscreteScheduler": (DDIM, _SINGLE_STEP, "linspace"),
    "DPMSolverMultistepScheduler": (DPMSolver, _MULTISTEP, "linspace"),
    "UniPCMultistepScheduler": (UniPC, _MULTISTEP, "linspace"),
}

# What samplers here compute, as the fields of diffusers say it; where a config has a field with another value, that is
# not followed. `clip_sample` is True where a DDIM or DDPM does not say.
_FOLLOWED = {
    "algorithm_type": "dpmsolver++",
    "clip_sample": False,
    "disable_corrector": [],
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "invert_sigmas": False,
    "lower_order_final": True,
    "predict_x0": True,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "shift_terminal": None,
    "solver_order": 2,
    "steps_offset": 0,
    "stochastic_sampling": False,
    "thresholding": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
}
_SOLVER_TYPES = {"DPMSolverMultistepScheduler": "midpoint", "UniPCMultistepScheduler": "bh2"}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Objective and sampler read from a scheduler.

    Attributes:
        not_followed: fields of the scheduler that ask for something that samplers here do not do, with their values.
    """

    objective: Gaussian
    sampler: Sampler
    not_followed: tuple[str, ...]


def read_scheduler(path: Path, objective: Gaussian) -> Sampled:
    """Reads the scheduler_config.json of a pipeline, which may have none; ValueError names the file and the field."""
    config = read_json(path) if path.is_file() else {}
    try:
        return sampled_as(config, objective)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def sampled_as(config: Mapping[str, Any], objective: Gaussian) -> Sampled:
    """Objective and sampler of a scheduler_config.json; `config` is empty where there is none.

    Args:
        objective: that of the network's family, which keeps what the config does not say.

    Raises:
        ValueError: the scheduler is on another path than the network's, or of a class that has no counterpart here;
            names the field.
    """
    on_table = isinstance(objective.path, DiscreteBetas)
    if not config:
        sampler = DDIM(num_steps=NUM_STEPS, spacing=Leading()) if on_table else Euler(num_steps=NUM_STEPS)
        return Sampled(objective, sampler, ())
    if config.get("num_train_timesteps", 1000) != 1000:
        raise _refused(config, "num_train_timesteps", "1000")
    name = str(config.get("_class_name"))
    read = _on_table(name, config, objective) if on_table else _on_flow(name, config, objective)
    followed = _FOLLOWED | ({"solver_type": _SOLVER_TYPES[name]} if name in _SOLVER_TYPES else {})
    unsaid = {"clip_sample": True} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    other = {n: v for n, v in (unsaid | dict(config)).items() if n in followed and v != followed[n]}
    return Sampled(*read, tuple(f"{n}={shortened(v)}" for n, v in other.items()))


def _on_table(name: str, config: Mapping[str, Any], objective: Gaussian) -> tuple[Gaussian, Sampler]:
    if name not in _ON_TABLES:
        raise _refused(config, "_class_name", " or ".join(_ON_TABLES))
    for field, value in {"beta_schedule": "linear", "trained_betas": None}.items():
        if config.get(field, value) != value:
            raise _refused(config, field, repr(value))
    kind, spacings, unsaid = _ON_TABLES[name]
    prediction = _chosen(config, "prediction_type", _PREDICTIONS, "epsilon")
    spacing = _chosen(config, "timestep_spacing", spacings, unsaid)
    first, last = (_number(config, *field) for field in (("beta_start", 1e-4), ("beta_end", 0.02)))
    for field, beta in (("beta_start", first), ("beta_end", last)):
        if beta >= 1:
            raise _refused(config, field, "below 1")
    betas = DiscreteBetas(beta_first=first, beta_last=last)
    objective = dataclasses.replace(objective, path=betas, prediction=prediction)
    return objective, kind(num_steps=NUM_STEPS, spacing=spacing)


def _chosen(config: Mapping[str, Any], field: str, known: Mapping[str, Known], unsaid: str) -> Known:
    name = config.get(field, unsaid)
    if not isinstance(name, str) or name not in known:
        raise _refused(config, field, " or ".join(known))
    return known[name]


def _number(config: Mapping[str, Any], field: str, unsaid: float) -> float:
    value = config.get(field, unsaid)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST:
        raise _refused(config, field, "a number above 0")
    return float(value)


def _on_flow(name: str, config: Mapping[str, Any], objective: Gaussian) -> tuple[Gaussian, Sampler]:
    if name == "FlowMatchEulerDiscreteScheduler":
        shift = _number(config, "shift", 1.0)
        # diffusers spaces from the shifted level of its first timestep, then shifts again.
        sampler = Euler(num_steps=NUM_STEPS, spacing=Linspace(last=shift / (1000 + shift - 1)))
    elif name in _SOLVER_TYPES:
        for field, value in {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}.items():
            if config.get(field) != value:
                raise _refused(config, field, repr(value))
        shift = _number(config, "flow_shift", 1.0)
        unipc = UniPC(num_steps=NUM_STEPS, spacing=Linspace(drop_last=True))
        dpm = DPMSolver(num_steps=NUM_STEPS, spacing=Trailing(first=0.999))
        sampler = unipc if name == "UniPCMultistepScheduler" else dpm
    else:
        raise _refused(config, "_class_name", " or ".join(["FlowMatchEulerDiscreteScheduler", *_SOLVER_TYPES]))
    return dataclasses.replace(objective, shift=ConstantShift(shift=shift)), sampler


def _refused(config: Mapping[str, Any], field: str, must_be: str) -> ValueError:
    return ValueError(f"{field}={shortened(config.get(field))}: must be {must_be} for this network")
