"""Export of weights: safetensors with a config.json that rebuilds the network, compared after writing.

Tensors keep their dotted names (nn/module.py), so no table of names is needed. A codec's export is codec.safetensors
(VAE, and mean and deviation of its latents); a denoiser's is that and model.safetensors, complete in itself.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jaxtyping import Array, Key
from safetensors.numpy import save_file

import dit_video
from dit_video.config import components, old_records
from dit_video.config.json_file import read_object
from dit_video.config.user_file import ExperimentError
from dit_video.data.signals import CAPTION
from dit_video.dit.condition import Condition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.network import Network, NetworkConfig, Remat
from dit_video.export.inputs import inputs_of
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.task import ClipShape
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import name_codec_as
from dit_video.vae.vae import VAEConfig
from dit_video.weights.digest import differing, name_as, texts_of, weights_digest

CONFIG = "config.json"
MODEL = "model.safetensors"
CODEC = "codec.safetensors"
# 2: classes by their addresses, no channels of known frames. 3: one DiTConfig for the DiT of today and as published.
# 5: digests of arrays are two sums, and that of a codec is of its statistics too.
VERSION = 5
_READ = (2, 3, 4, VERSION)

Kind = TypeVar("Kind")


class ExportMismatch(ValueError):
    """An export differs from its config.json, or from the run it was made from."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of exported weights.

    Attributes:
        task: the run's task as JSON data: objective, sampler and guidance go with the weights.
        ema: whether these are the averaged weights.
        fingerprint: of the run's experiment.
        imported: what `dit-video import` wrote down, of a run that it made.
    """

    run: str
    step: int
    ema: bool
    fingerprint: str
    task: Mapping[str, Any]
    imported: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A trained denoiser and the task it was trained for."""

    task: Denoise
    network: Network


@dataclasses.dataclass(frozen=True)
class Content:
    """Content of an export.

    Attributes:
        denoiser: None where the run trained a codec.
        codec: the codec that the denoiser was trained on, or the one that the run trained.
        clip: (T, H, W) of the clips that the run was trained on.
        signals: of one clip, in the shapes of training.
    """

    denoiser: Denoiser | None
    codec: LatentCodec
    clip: ClipShape
    origin: Origin
    signals: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def caption_bytes(self) -> int | None:
        """Length of the captions that it was trained on, where it was."""
        return self.signals[CAPTION].shape[1] if CAPTION in self.signals else None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latent shape (t, h, w, c) of a clip."""
        vae = self.codec.vae.config
        return (*vae.latent_shape(self.clip), vae.latent_channels)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A loaded export; `network` is None where a codec was exported."""

    config: dict[str, Any]
    network: Network | None
    codec: LatentCodec


def write_weights(content: Content, folder: Path) -> tuple[dict[str, Any], int]:
    """Writes config.json and safetensors into `folder`, loads them again and compares every tensor bit by bit.

    Returns:
        config.json and the number of tensors compared.

    Raises:
        ExportMismatch: what was read back differs; the message names the first tensor that does.
    """
    config = _config(content)
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    origin = {name: str(config["origin"][name]) for name in ("step", "weights", "fingerprint")}
    if content.denoiser is None:
        _write(folder / CODEC, params_of(content.codec), origin)
    else:
        _write(folder / CODEC, params_of(content.codec), {})
        _write(folder / MODEL, params_of(content.denoiser.network), origin)
    loaded = load(folder, None if content.denoiser is None else content.denoiser.task)
    num_tensors = compare(folder / CODEC, params_of(loaded.codec), params_of(content.codec))
    if content.denoiser is not None:
        assert loaded.network is not None, "the content has a denoiser, so its config.json has a network"
        own = params_of(content.denoiser.network)
        num_tensors += compare(folder / MODEL, params_of(loaded.network), own)
    return config, num_tensors


def write_params(params: Params, origin: Origin, folder: Path) -> int:
    """Writes the parameters of any task and a config.json with the task, and compares what was read back.

    Returns:
        how many tensors were compared, bit by bit.

    Raises:
        ExportMismatch: what was read back differs; the message names the first tensor that does.
    """
    said = {"step": origin.step, "weights": "ema" if origin.ema else "raw", "fingerprint": origin.fingerprint}
    config = {
        "format_version": VERSION,
        "origin": {"run": origin.run, **said},
        "task": origin.task,
        "digest": weights_digest(params),
        "versions": {"dit_video": dit_video.__version__, "jax": jax.__version__},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    _write(folder / MODEL, params, {name: str(value) for name, value in said.items()})
    with safetensors.safe_open(folder / MODEL, framework="numpy") as file:
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return compare(folder / MODEL, written, params)


def load(folder: Path, like: Any = None) -> Exported:
    """Rebuilds network and codec from an export, without the run it came from.

    Args:
        like: a task or experiment with the classes of the user's own that the network is made of.

    Raises:
        FileNotFoundError: config.json or a file of weights is not there.
        ExportMismatch: a tensor is missing, surplus, of another shape or type, or damaged; the message names it.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: not an export (no {CONFIG}); `dit-video export --workdir RUN --out` makes one"
        )
    config = read_object(path)
    if config.get("format_version") not in _READ:
        raise ExportMismatch(
            f"{path}: format_version={config.get('format_version')}, this version of dit_video reads {VERSION}; "
            f"it was written by dit_video {config.get('versions', {}).get('dit_video')}"
        )
    own = {} if like is None else components.own_classes(like)
    sizes = _part(config["codec"]["config"], f"{path}: codec.config", VAEConfig, own)
    codec = _load_part(folder / CODEC, define_codec(sizes, jnp.dtype(config["codec"]["dtype"])))
    digest = name_codec_as(config["codec"]["digest"], codec)
    if digest != config["codec"]["digest"]:
        raise ExportMismatch(f"{folder / CODEC}: holds the codec {digest}, {CONFIG} says {config['codec']['digest']}")
    network = None
    if config["network"] is not None:
        network = _load_part(folder / MODEL, _define_network(config["network"], path, own))
        digest = name_as(config["network"]["digest"], params_of(network))
        if digest != config["network"]["digest"]:
            raise ExportMismatch(
                f"{folder / MODEL}: holds the weights {digest}, {CONFIG} says {config['network']['digest']}"
            )
    return Exported(config, network, codec)


def define_codec(sizes: VAEConfig, dtype: jnp.dtype) -> Definition:
    """Definition of a codec with its statistics, whose parameter names are those of codec.safetensors."""

    def build(key: Key[Array, ""]) -> LatentCodec:
        return LatentCodec(sizes.build(dtype=dtype, rngs=nnx.Rngs(key)))

    return define(build)


def _config(content: Content) -> dict[str, Any]:
    """Makes config.json: network and codec for `load`, and information for readers."""
    codec, origin = content.codec, content.origin
    network = None
    if content.denoiser is not None:
        task = content.denoiser.task
        # How gradients are computed is no part of what the network is.
        sizes = dataclasses.replace(task.network, remat=Remat.NOTHING_RECOMPUTED)
        network = {
            "config": components.to_json(sizes),
            "channels": task.codec.vae.latent_channels,
            "condition": components.to_json(task.condition),
            "known": None if task.known is None else components.to_json(task.known.channels),
            "inputs": [dataclasses.asdict(i) for i in inputs_of(task, content.latent_shape, content.signals)],
            "per_frame": task.objective.per_frame,
            "dtype": task.precision.value,
            "digest": weights_digest(params_of(content.denoiser.network)),
        }
    return {
        "format_version": VERSION,
        "origin": {
            "run": origin.run,
            "step": origin.step,
            "weights": "ema" if origin.ema else "raw",
            "fingerprint": origin.fingerprint,
        },
        "clip_shape": content.clip,
        "latent_shape": content.latent_shape,
        "network": network,
        "codec": {
            "config": components.to_json(codec.vae.config),
            "compression": codec.vae.config.compression,
            "dtype": jnp.dtype(codec.vae.dtype).name,
            "digest": name_codec_as(None, codec),
            "mean": np.asarray(codec.mean[...]).tolist(),
            "std": np.asarray(codec.std[...]).tolist(),
        },
        "task": origin.task,
        "versions": {"dit_video": dit_video.__version__, "jax": jax.__version__},
    }


def _define_network(config: Mapping[str, Any], path: Path, own: Mapping[str, type]) -> Definition:
    sizes = _part(config["config"], f"{path}: network.config", NetworkConfig, own)
    condition, known = _seen(config, path, own)

    def build(key: Key[Array, ""]) -> Network:
        dtype, rngs = jnp.dtype(config["dtype"]), nnx.Rngs(key)
        return sizes.build(config["channels"], condition, known=known, dtype=dtype, rngs=rngs)

    return define(build)


def _seen(config: Mapping[str, Any], path: Path, own: Mapping[str, type]) -> tuple[Condition | None, AsChannels | None]:
    """What the network of a config.json at `path` is conditioned on, and the channels of known frames that it takes."""
    condition, known = config["condition"], config.get("known")
    if condition is not None and "known" not in config:
        condition, known = old_records.condition_and_channels(condition)
    return (
        None if condition is None else _part(condition, f"{path}: network.condition", Condition, own),
        None if known is None else _part(known, f"{path}: network.known", AsChannels, own),
    )


def _part(data: Any, where: str, kind: type[Kind], own: Mapping[str, type]) -> Kind:
    """Deserialises a component of a config.json.

    Raises:
        ExportMismatch: it is none of this version, or of another kind; names it.
    """
    try:
        value = components.from_json(data, where, own)
    except ExperimentError as error:
        raise ExportMismatch(str(error)) from error
    if not isinstance(value, kind):
        raise ExportMismatch(f"{where}: is {type(value).__name__}, no {kind.__name__}")
    return value


def _write(path: Path, params: Params, origin: Mapping[str, str]) -> None:
    metadata = {
        "format": "dit_video",
        "format_version": str(VERSION),
        "digest": weights_digest(params),
        "digests": json.dumps(texts_of(params)),
        **origin,
    }
    # safetensors writes memory as it lies, into a file that only its owner may read.
    save_file({name: np.asarray(value, order="C") for name, value in params.items()}, path, metadata)
    shutil.copymode(path.parent / CONFIG, path)


def _load_part(path: Path, definition: Definition) -> Any:
    """Loads a network from a file; every tensor is checked before it is used."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; export again, with --format safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except safetensors.SafetensorError as error:
        raise ExportMismatch(f"{path}: not a whole safetensors file ({error}); export or copy it again") from error
    missing, surplus = definition.shapes.keys() - tensors.keys(), tensors.keys() - definition.shapes.keys()
    if missing or surplus:
        raise ExportMismatch(
            f"{path}: its tensors are not those of {CONFIG}: missing {', '.join(sorted(missing)) or 'none'}; "
            f"surplus {', '.join(sorted(surplus)) or 'none'}"
        )
    for name, expected in definition.shapes.items():
        actual = tensors[name]
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            raise ExportMismatch(
                f"{path}: {name} is {actual.dtype}{list(actual.shape)}, {CONFIG} says "
                f"{expected.dtype}{list(expected.shape)}"
            )
    params = {name: jnp.asarray(value) for name, value in tensors.items()}
    for name in differing(params, json.loads(metadata.get("digests", "{}"))):
        raise ExportMismatch(f"{path}: {name} is damaged: it has not the digest it was written with; copy it again")
    return definition.bind(params)


def compare(path: Path, actual: Mapping[str, Array | np.ndarray], expected: Mapping[str, Array | np.ndarray]) -> int:
    """Compares tensors bit by bit and counts them; the error names the first with another name, shape, type or bits."""
    for name in sorted(actual.keys() ^ expected.keys()):
        raise ExportMismatch(f"{path}: {name} is {'surplus' if name in actual else 'missing'}")
    for name in expected:
        a, b = (np.asarray(p[name], order="C") for p in (actual, expected))
        same = (a.shape, a.dtype) == (b.shape, b.dtype)
        if not same or not np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)):
            raise ExportMismatch(f"{path}: {name} differs from the checkpoint")
    return len(expected)
