"""Export to diffusers: a folder that diffusers loads, compared with the run's own network.

Tensors are read back by the table that wrote them and compared bit by bit. Where torch and diffusers are installed,
the folder is then loaded as its users will, and both networks are called with the same input.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import dit_video
from dit_video.export.folder import README
from dit_video.export.weights import Content, ExportMismatch, Origin, compare
from dit_video.nn.module import params_of
from dit_video.published.family import Family, Pair, Shape
from dit_video.published.recognise import denoiser_family, vae_family
from dit_video.weights import names
from dit_video.weights.folder import CONFIG, WEIGHTS
from dit_video.weights.names import Dialect, Table
from dit_video.weights.source import open_published

# Largest difference over largest value, both computed in float32: of weights as they are, and of weights that were
# rounded to a type of the relative precision 2^-11 or 2^-8.
TOLERANCE = 1e-4
TOLERANCES = {"float32": TOLERANCE, "float16": 1e-2, "bfloat16": 8e-2}


@dataclasses.dataclass(frozen=True)
class Parity:
    """Result of the comparison of an export with its run.

    Attributes:
        num_tensors: bit-equal after reading them back.
        error: largest difference between what both libraries compute, over the largest value; None where torch or
            diffusers is not installed, so that nothing was computed.
        num_compared: layers and outputs whose difference that is.
        tolerance: the largest error that is allowed.
        dtype: of the weights that were written; rounded to it, they are bit-equal.
    """

    num_tensors: int
    error: float | None
    num_compared: int
    tolerance: float = TOLERANCE
    dtype: str = "float32"


def write_diffusers(content: Content, folder: Path, dtype: str = "float32") -> Parity:
    """Writes config.json, weights and a model card into `folder`, and compares them with the run.

    Args:
        dtype: of the weights, one of `TOLERANCES`.

    Raises:
        ValueError: diffusers has no class for this network, or `dtype` cannot hold its numbers; says why and what can
            be done.
        ExportMismatch: what was read back differs, or diffusers computes something else.
    """
    try:
        family, module, shape = _subject(content)
        config = family.diffusers_config(shape)
    except ValueError as error:
        raise ValueError(
            f"diffusers cannot compute this network: {error}. --format safetensors and stablehlo export any, and "
            "--format torch that of a DiTConfig or PublishedDiTConfig"
        ) from error
    params = {name: np.asarray(value) for name, value in params_of(module).items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    num_tensors = write_tensors(family.table(), Dialect.DIFFUSERS, params, folder / WEIGHTS, dtype)
    (folder / README).write_text(_model_card(content, family, shape), encoding="utf-8")
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "accelerate")):
        return Parity(num_tensors, None, 0, TOLERANCES[dtype], dtype)
    return compare_layers(family, params, folder, family.compared(shape), num_tensors, dtype)


def _subject(content: Content) -> tuple[Family, nnx.Module, Shape]:
    """The family, module and input shape of the part of a run that diffusers has a class for.

    Raises:
        ValueError: there is none; names the field that says so.
    """
    if content.denoiser is None:
        return vae_family(content.codec), content.codec.vae, content.clip
    t, h, w, _ = content.latent_shape
    return denoiser_family(content.denoiser.task), content.denoiser.network, (t, h, w)


def write_tensors(
    table: Table, dialect: Dialect, params: Mapping[str, np.ndarray], path: Path, dtype: str = "float32"
) -> int:
    """Writes parameters as safetensors in a dialect, beside config.json, and reads them back.

    Args:
        dtype: that they are rounded to.

    Returns:
        how many were compared, bit by bit.

    Raises:
        ValueError: `dtype` cannot hold a number; names its tensor.
        ExportMismatch: what was read back differs; names the first tensor that does.
    """
    kind = jnp.dtype(dtype)
    params = {name: _rounded(value, kind, name) for name, value in params.items()}
    constants = table.constants.get(dialect, {})
    written = ((n, np.ascontiguousarray(x)) for n, x in names.write(table, dialect, params))
    tensors = {n: x if n in constants else x.astype(kind) for n, x in written}
    save_file(tensors, path, {"format": "pt"})
    # safetensors writes a file that only its owner may read.
    path.chmod((path.parent / CONFIG).stat().st_mode)
    with open_published(path) as published:
        names.check(table, dialect, published.source)
        return compare(path, dict(names.read(table, dialect, published.source)), params)


def _rounded(value: np.ndarray, kind: np.dtype, name: str) -> np.ndarray:
    """The nearest numbers of a type, in the type that they have."""
    with np.errstate(over="ignore"):
        rounded = value.astype(kind).astype(value.dtype)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(value)):
        raise ValueError(f"{name} has numbers too large for {kind}: use --dtype bfloat16 or float32")
    return rounded


def compare_layers(
    family: Family,
    params: Mapping[str, np.ndarray],
    folder: Path,
    shape: Shape,
    num_tensors: int,
    dtype: str = "float32",
) -> Parity:
    """Runs both networks on the same random input and compares layers and outputs.

    Args:
        dtype: that the weights in `folder` are rounded to, and `params` are not. Both networks compute in float32.

    Raises:
        ExportMismatch: something differs by more than the tolerance of `dtype`; names the first layer where it does.
    """
    import diffusers
    import torch

    # Found by name, since which class it is is what the family says.
    theirs: Any = getattr(diffusers, family.diffusers_class).from_pretrained(folder, torch_dtype=torch.float32).eval()
    tolerance = TOLERANCES[dtype]
    error, num_compared = compare_pairs(family.pairs(params, theirs, shape), f"{folder}: diffusers", tolerance)
    return Parity(num_tensors, error, num_compared, tolerance, dtype)


def compare_pairs(pairs: Iterable[Pair], whose: str, tolerance: float = TOLERANCE) -> tuple[float, int]:
    """Compares pairs, which torch and JAX compute lazily.

    Args:
        whose: who computes theirs, for the message.

    Returns:
        the largest of their errors, and their number.

    Raises:
        ExportMismatch: one is larger than `tolerance`; names the first that is.
    """
    import torch

    worst, num_compared = 0.0, 0
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        for pair in pairs:
            error = relative_error(pair)
            if not error <= tolerance:  # a difference that is no number is too large as well
                raise ExportMismatch(
                    f"{whose} computes something else at {pair.name}: largest difference over largest value "
                    f"{error:.3g}, allowed {tolerance:g}"
                )
            worst, num_compared = max(worst, error), num_compared + 1
    return worst, num_compared


def relative_error(pair: Pair) -> float:
    """Relative error: largest difference over largest value; NaN where shapes differ."""
    if pair.ours.shape != pair.theirs.shape:
        return float("nan")
    scale = max(float(np.max(np.abs(pair.theirs))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(pair.ours.astype(np.float32) - pair.theirs))) / scale


def _model_card(content: Content, family: Family, shape: Shape) -> str:
    objective = "" if content.denoiser is None else f"\nObjective: `{content.denoiser.task.objective}`\n"
    return f"""---
library_name: diffusers
tags: [dit-video]
---
# {content.origin.run}

{provenance(content.origin, "diffusers")}

{family.usage(shape)}
{objective}"""


def provenance(origin: Origin, written_as: str) -> str:
    """Provenance section of a model card: the run of the weights, and what it was imported from. Markdown."""
    weights = "ema" if origin.ema else "raw"
    imported = "" if origin.imported is None else f"\n{_imported(origin.imported)}"
    written_by = f"Written by `dit-video export --format {written_as}` {dit_video.__version__}"
    return f"""{written_by}: {weights} weights of step {origin.step} of
the run `{origin.run}`, whose experiment has the fingerprint {origin.fingerprint}.
{imported}"""


def _imported(imported: Mapping[str, Any]) -> str:
    files = "".join(f"\n- `{name}`, SHA-256 {digest}" for name, digest in imported["sha256"].items())
    source, dtype, dialect = (imported[name] for name in ("source", "dtype", "dialect"))
    return f"The run is the import of `{source}`, {dtype} tensors with {dialect} names:\n{files}"
