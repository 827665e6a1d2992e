"""Records of older format versions: classes and fields of then, as those of today.

- 1, of 2026-11-22 and before, without a version in the record: classes by their addresses (names.py has names), a first
  frame, captions and embedded captions elsewhere.
- 2: one class of DiT, with fields that are two classes now (`_dit`).
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from dit_video.config.user_file import ExperimentError

# By the module that a class lived in then, under dit_video; none was renamed since.
_OLD_ROOMS: Mapping[str, tuple[str, ...]] = {
    "data.dataset": ("Data",),
    "data.sources": ("LatentCache", "MovingDigits", "NoData", "TFDSSet", "VideoSet"),
    "data.text_cache": ("TextCache",),
    "data.transforms": ("ClipTransform",),
    "diffusion.guidance": ("Guidance",),
    "diffusion.multistep": ("DPMSolver", "UniPC"),
    "diffusion.objective": ("Gaussian", "LogitNormal", "MinSNR", "Uniform", "UniformLevels", "Unweighted"),
    "diffusion.path": (
        "ConstantShift", "Cosine", "DiscreteBetas", "ExponentialShift", "Linear", "LinearBeta", "TokenShift",
    ),
    "diffusion.prediction": ("Epsilon", "V", "Velocity", "X0"),
    "diffusion.sampler": ("Ancestral", "DDIM", "Euler", "Heun"),
    "diffusion.spacing": ("Leading", "Linspace", "Trailing"),
    "diffusion.variance": ("LearnedVariance",),
    "dit.condition": ("ClassCondition", "EmbeddedText", "TextCondition"),
    "dit.dit": ("DiTConfig",),
    "dit.first_frame": ("FirstFrame",),
    "dit.latte": ("LatteConfig",),
    "dit.mmdit": ("MMDiTConfig", "PositionTable"),
    "dit.wan": ("WanConfig",),
    "evaluation.features": ("FromFile",),
    "evaluation.fvd": ("FVD",),
    "evaluation.i3d": ("I3DLogits",),
    "evaluation.monitor": ("HeldOutError", "Reconstruction", "Samples"),
    "experiment": ("Experiment",),
    "image.clip": ("CLIPVisionConfig",),
    "image.pretrained": ("PretrainedImage",),
    "retention": ("Best", "Keep"),
    "sharding": ("MeshShape",),
    "tasks.autoencode": ("Autoencode",),
    "tasks.denoise": ("Denoise", "TrainedCodec"),
    "text.clip": ("CLIPTextConfig",),
    "text.pretrained": ("FrozenCLIP", "FrozenT5", "PretrainedText", "ZeroTokens"),
    "text.t5": ("T5Config",),
    "training.faults": ("Faults", "Note", "RollBack", "Skip", "Spike", "Stop"),
    "training.loop": ("Schedule",),
    "training.optimizer": ("EMA", "AdamW", "Group", "Muon"),
    "vae.adversary": ("AutoencodeLoss",),
    "vae.autoencoder_kl": ("AutoencoderKLConfig",),
    "vae.cogvideox_vae": ("CogVideoXVAEConfig",),
    "vae.video_vae": ("VideoVAEConfig",),
    "vae.wan_vae": ("WanVAEConfig",),
}  # fmt: skip

ADDRESSES: Mapping[str, str] = {
    f"dit_video.{room}.{name}": name for room, names in _OLD_ROOMS.items() for name in names
}


def upgrade(data: Any, where: str = "record") -> Any:
    """JSON data with the classes and fields of today; data of today stay as they are.

    Args:
        where: its path, for messages.

    Raises:
        ExperimentError: a component of then that no class of today is; names the field, its value and what to do.
    """
    if isinstance(data, list):
        return [upgrade(item, f"{where}.{number}") for number, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    fields = {key: upgrade(value, f"{where}.{key}") for key, value in data.items()}
    kind = fields.get("class")
    if not isinstance(kind, str):
        return fields
    if kind in ADDRESSES:
        kind = ADDRESSES[kind]
        fields = _CHANGES.get(kind, lambda fields: fields)(fields | {"class": kind})
    # A class of the user's own that is derived from DiTConfig has its fields too.
    is_dit = kind == "DiTConfig" or ("." in kind and _DIT.keys() <= fields.keys())
    return _dit(fields, where) if is_dit else fields


def condition_and_channels(data: Mapping[str, Any]) -> tuple[Any, Any]:
    """The condition on text and the channels of known frames that a condition of then stands for, as JSON of today."""
    upgraded = upgrade(dict(data))
    return (upgraded["condition"], upgraded["channels"]) if upgraded.get("class") == _PAIR else (upgraded, None)


# What a `FirstFrame` of then becomes until the task takes it apart.
_PAIR = "condition and channels"


def _first_frame(fields: dict[str, Any]) -> dict[str, Any]:
    """A condition on text and a first frame: two values now."""
    names = ("mask_channels", "grey_frames", "image_size")
    channels = {"class": "AsChannels", **{name: fields[name] for name in names if name in fields}}
    return {"class": _PAIR, "condition": fields.get("text"), "channels": channels}


def _denoise(fields: dict[str, Any]) -> dict[str, Any]:
    """What is known of a clip is one field now, `known`."""
    holds, condition = fields.pop("hold_first_frame", False), fields.get("condition")
    shown = {"class": "LevelZero"} if holds is True else None
    if isinstance(condition, dict) and condition.get("class") == _PAIR:
        fields["condition"], shown = condition["condition"], condition["channels"]
    return fields | {"known": None if shown is None else {"class": "FirstFrame", "shown": shown}}


def _data(fields: dict[str, Any]) -> dict[str, Any]:
    """Labels, captions and embedded captions are signals now."""
    num_bytes, text = fields.pop("caption_bytes", None), fields.pop("text", None)
    signals: dict[str, Any] = {"label": {"class": "ClassLabel"}}
    if num_bytes is not None:
        signals["caption"] = {"class": "CaptionBytes", "num_bytes": num_bytes}
    if text is not None:
        signals["text"] = text
    return fields | {"signals": signals}


_CHANGES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "FirstFrame": _first_frame,
    "Denoise": _denoise,
    "Data": _data,
}


# Fields of the DiTConfig of formats 1 and 2 and their defaults; it was both networks, by its positions.
_DIT: Mapping[str, Any] = {
    "shared_modulation": False,
    "positions": "rotary",
    "position_grid": None,
    "norm": "rms",
    "qk_norm": "per_head",
    "mlp": "swiglu",
    "mlp_norm_epsilon": 1e-6,
    "timestep_offset": 0,
    "time_frequency_shift": 0,
    "learned_variance": False,
}
# What each of the two has as a constant now, by the positions of then.
_DIT_CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    "rotary": {
        "positions": "rotary",
        "position_grid": None,
        "mlp_norm_epsilon": 1e-6,
        "timestep_offset": 0,
        "time_frequency_shift": 0,
    },
    "sincos": {
        "positions": "sincos",
        "shared_modulation": False,
        "norm": "layer",
        "qk_norm": "none",
        "mlp": "gelu",
        "timestep_offset": -1,
    },
}
_DIT_NAMES = {"rotary": "DiTConfig", "sincos": "PublishedDiTConfig"}


def _dit(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The DiT of today or the one as published: two classes now, with the fields that are free in each."""
    if not _DIT_CONSTANTS["rotary"].keys() & fields.keys():
        return fields  # of today
    whole = {**_DIT, **fields}
    positions = "sincos" if whole["positions"] == "sincos" else "rotary"
    name, constants = _DIT_NAMES[positions], _DIT_CONSTANTS[positions]
    for field, constant in constants.items():
        if whole[field] != constant:
            raise ExperimentError(
                f"{where}.{field}={reprlib.repr(whole[field])}: a DiT with positions={positions} is a {name} in this "
                f"version, of which {field} is {constant}; read this record with the dit_video that wrote it"
            )
    if fields["class"] == "DiTConfig":
        whole["class"] = name
    return {field: value for field, value in whole.items() if field not in constants}
