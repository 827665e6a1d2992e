"""A folder that diffusers loads, compared with the run's own network before it is called done.

Tensors are read back by the table that wrote them and compared bit by bit. Where torch and diffusers are installed,
the folder is then loaded as its users will, and both networks are called with the same input.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import dit_video
from dit_video.export import names
from dit_video.export.family import Family, Pair, Shape
from dit_video.export.folder import README
from dit_video.export.names import Dialect
from dit_video.export.recognise import denoiser_family, vae_family
from dit_video.export.source import CONFIG, WEIGHTS, open_published
from dit_video.export.weights import Content, ExportMismatch, compare
from dit_video.nn.module import params_of

# Largest difference over largest value, both in float32.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        num_tensors: bit-equal after reading them back.
        error: largest difference between what both libraries compute, over the largest value; None where torch or
            diffusers is not installed, so that nothing was computed.
        num_compared: layers and outputs whose difference that is.
    """

    num_tensors: int
    error: float | None
    num_compared: int


def write_diffusers(content: Content, folder: Path) -> Parity:
    """Writes config.json, weights and a model card into `folder`, and compares them with the run.

    Raises:
        ValueError: diffusers has no class for this network; says why and what can be done.
        ExportMismatch: what was read back differs, or diffusers computes something else.
    """
    try:
        family, module, shape = _subject(content)
        config = family.diffusers_config(shape)
    except ValueError as error:
        raise ValueError(
            f"diffusers cannot compute this network: {error}. --format safetensors and stablehlo export any"
        ) from error
    params = {name: np.asarray(value) for name, value in params_of(module).items()}
    table = family.table()
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {n: np.ascontiguousarray(x) for n, x in names.write(table, Dialect.DIFFUSERS, params)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    with open_published(folder) as published:
        names.check(table, published.dialect, published.source)
        found = dict(names.read(table, published.dialect, published.source))
    num_tensors = compare(folder / WEIGHTS, found, params)
    (folder / README).write_text(_model_card(content, family, shape), encoding="utf-8")
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        return Parity(num_tensors, None, 0)
    return compare_layers(family, params, folder, shape, num_tensors)


def _subject(content: Content) -> tuple[Family, nnx.Module, Shape]:
    """What of a run diffusers has a class for, the module whose weights it takes, and the shape of its input.

    Raises:
        ValueError: there is none; names the field that says so.
    """
    if content.denoiser is None:
        return vae_family(content.codec), content.codec.vae, content.clip
    t, h, w, _ = content.latent_shape
    return denoiser_family(content.denoiser.task), content.denoiser.network, (t, h, w)


def compare_layers(
    family: Family, params: Mapping[str, np.ndarray], folder: Path, shape: Shape, num_tensors: int
) -> Parity:
    """Calls both networks with the same random input and compares what comes out of layers and at the end.

    Raises:
        ExportMismatch: something differs by more than `TOLERANCE`; names the first layer where it does.
    """
    import diffusers
    import torch

    # Found by name, since which class it is is what the family says.
    theirs: Any = getattr(diffusers, family.diffusers_class).from_pretrained(folder, low_cpu_mem_usage=False).eval()
    worst, num_compared = 0.0, 0
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        for pair in family.pairs(params, theirs, shape):
            error = relative_error(pair)
            if not error <= TOLERANCE:  # a difference that is no number is too large as well
                raise ExportMismatch(
                    f"{folder}: diffusers computes something else at {pair.name}: largest difference over largest "
                    f"value {error:.3g}, allowed {TOLERANCE:g}"
                )
            worst, num_compared = max(worst, error), num_compared + 1
    return Parity(num_tensors, worst, num_compared)


def relative_error(pair: Pair) -> float:
    """Largest difference over largest value; not a number where shapes differ."""
    if pair.ours.shape != pair.theirs.shape:
        return float("nan")
    scale = max(float(np.max(np.abs(pair.theirs))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(pair.ours.astype(np.float32) - pair.theirs))) / scale


def _model_card(content: Content, family: Family, shape: Shape) -> str:
    origin = content.origin
    objective = "" if content.denoiser is None else f"\nObjective: `{content.denoiser.task.objective}`\n"
    imported = "" if origin.imported is None else f"\n{_imported(origin.imported)}\n"
    return f"""---
library_name: diffusers
tags: [dit-video]
---
# {origin.run}

Written by `dit-video export --format diffusers` {dit_video.__version__}: {"ema" if origin.ema else "raw"} weights of
step {origin.step} of the run `{origin.run}`, whose experiment has the fingerprint {origin.fingerprint}.
{imported}
{family.usage(shape)}
{objective}"""


def _imported(said: Mapping[str, Any]) -> str:
    files = "".join(f"\n- `{name}`, SHA-256 {digest}" for name, digest in said["sha256"].items())
    return (
        f"The run is the import of `{said['source']}`, {said['dtype']} tensors with {said['dialect']} names:\n{files}"
    )
