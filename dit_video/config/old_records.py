"""Records from before they had a format version: classes by their addresses, and fields that are others now.

They were written by the code of 2026-11-22 and before. What is written now has names (names.py) and a version.
"""

from collections.abc import Callable, Mapping
from typing import Any

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


def upgrade(data: Any) -> Any:
    """JSON data with the classes and fields of today; data of today stay as they are."""
    if isinstance(data, list):
        return [upgrade(item) for item in data]
    if not isinstance(data, dict):
        return data
    address = data.get("class")
    name = ADDRESSES.get(address) if isinstance(address, str) else None
    fields = {key: upgrade(value) for key, value in data.items()}
    if name is None:
        return fields
    change = _CHANGES.get(name, lambda fields: fields)
    return change(fields | {"class": name})


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
