"""Export to PyTorch: a folder of self-contained torch modules, compared with the run's networks layer by layer.

The files are copied as they lie in export/torch/files. Tensors are read back by the table that wrote them and compared
bit by bit; where torch is installed, the folder is then loaded as its users will.
"""

import dataclasses
import importlib.util
import json
import shutil
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.export.diffusers_folder import Parity, compare_pairs, write_tensors
from dit_video.export.folder import README
from dit_video.export.torch.card import model_card
from dit_video.export.torch.dit import TorchDiT
from dit_video.export.torch.module import TorchModule
from dit_video.export.torch.video_vae import TorchVAE
from dit_video.export.weights import Content
from dit_video.nn.module import params_of
from dit_video.published.family import Shape, few_cells
from dit_video.published.vae_family import few_frames
from dit_video.weights.folder import CONFIG
from dit_video.weights.names import Dialect

_FILES = Path(__file__).parent / "files"


@dataclasses.dataclass(frozen=True)
class ExportedModule:
    """A network of a run that is exported to PyTorch.

    Attributes:
        shape: of the input that it is compared at.
    """

    network: TorchModule
    params: Mapping[str, np.ndarray]
    shape: Shape


def write_torch(content: Content, folder: Path) -> Parity:
    """Writes torch modules, weights, config.json and a model card into `folder`, and compares them with the run.

    Raises:
        ValueError: there is no torch module of this network; says what can be done.
        ExportMismatch: what was read back differs, or a module computes something else.
    """
    parts = parts_of(content)
    num_tensors = write_files(content, parts, folder)
    if importlib.util.find_spec("torch") is None:
        return Parity(num_tensors, None, 0)
    compared = [compare_with(part, folder) for part in parts]
    return Parity(num_tensors, max(error for error, _ in compared), sum(number for _, number in compared))


def write_files(content: Content, parts: Sequence[ExportedModule], folder: Path) -> int:
    """Writes all files of `folder`; returns how many tensors were read back and compared, bit by bit."""
    origin, networks = content.origin, [part.network for part in parts]
    config = {network.field: network.torch_config() for network in networks} | {
        "clip_shape": content.clip,
        "latent_shape": content.latent_shape,
        "origin": {"run": origin.run, "step": origin.step, "ema": origin.ema, "fingerprint": origin.fingerprint},
        "task": origin.task,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    with_vae = any(isinstance(network, TorchVAE) for network in networks)
    (folder / README).write_text(model_card(content, with_vae=with_vae), encoding="utf-8")
    for network in networks:
        shutil.copyfile(_FILES / network.source, folder / network.module)
    return sum(
        write_tensors(part.network.table(), Dialect.TORCH, part.params, folder / part.network.weights) for part in parts
    )


def parts_of(content: Content) -> list[ExportedModule]:
    """Networks of a run with a torch module: its denoiser, and its codec's VAE.

    Raises:
        ValueError: there is none of its denoiser, or of the VAE where that is all there is; says what can be done.
    """
    t, h, w, _ = content.latent_shape
    parts, vae = [], TorchVAE.of_codec(content.codec)
    if content.denoiser is not None:
        try:
            network = TorchDiT.of_task(content.denoiser.task)
        except ValueError as error:
            raise ValueError(f"{error}; --format diffusers or safetensors exports others") from error
        parts.append(
            ExportedModule(network, _arrays(content.denoiser.network), few_cells((t, h, w), network.config.patch_size))
        )
    elif vae is None:
        kind = type(content.codec.vae).__name__
        raise ValueError(f"config.task.vae={kind}: there is a torch module of a VideoVAE alone; use --format diffusers")
    if vae is not None:
        parts.append(ExportedModule(vae, _arrays(content.codec), few_frames(content.clip, content.codec.vae.config)))
    return parts


def compare_with(part: ExportedModule, folder: Path) -> tuple[float, int]:
    """Loads a network from a folder and compares it with the run's, layer by layer.

    Returns:
        the largest difference over the largest value, and how many layers and outputs it is of.

    Raises:
        ExportMismatch: something differs; names the first layer that does.
    """
    path = folder / part.network.module
    theirs = _imported(path).load(folder)
    return compare_pairs(part.network.pairs(part.params, theirs, part.shape), str(path))


def _imported(path: Path) -> Any:
    """Loads a Python module from an exported file; a plain import would leave compiled files beside it."""
    module = types.ModuleType(path.stem)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module


def _arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in params_of(module).items()}
