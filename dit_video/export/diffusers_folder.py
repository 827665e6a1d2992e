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
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import dit_video
from dit_video.export import names
from dit_video.export.families import dit
from dit_video.export.families.dit import ClassDiT
from dit_video.export.folder import README
from dit_video.export.names import Dialect
from dit_video.export.source import CONFIG, WEIGHTS, open_published
from dit_video.export.weights import Content, ExportMismatch, Origin, compare
from dit_video.nn.embed import NUM_TIMESTEPS
from dit_video.nn.module import params_of

# Largest difference over largest value, both in float32.
TOLERANCE = 1e-4
_TIMESTEPS = (0, 1, 250, 500, 999)


@dataclasses.dataclass(frozen=True)
class Parity:
    """What was compared.

    Attributes:
        num_tensors: bit-equal after reading them back.
        error: largest difference between the outputs of both libraries over the largest value; None where torch or
            diffusers is not installed, so that outputs were not compared.
    """

    num_tensors: int
    error: float | None


def write_diffusers(content: Content, folder: Path) -> Parity:
    """Writes config.json, weights and a model card into `folder`, and compares them with the run.

    Raises:
        ValueError: diffusers has no class for this network; says why and what can be done.
        ExportMismatch: what was read back differs, or diffusers computes something else.
    """
    if content.denoiser is None:
        raise ValueError("diffusers has no class for the codec of this package; use --format safetensors or stablehlo")
    t, h, w, _ = content.latent_shape
    try:
        network = dit.of_task(content.denoiser.task)
        if t != 1 or h != w:
            raise ValueError(f"latents are of (t, h, w) = {(t, h, w)}: it takes square images alone")
        config = dit.diffusers_config(network, h)
    except ValueError as error:
        raise ValueError(
            f"diffusers' {dit.DIFFUSERS_CLASS} cannot compute this network: {error}. --format safetensors and "
            "stablehlo export any; `published` of dit_video.dit.dit makes one that diffusers computes"
        ) from error
    params = {name: np.asarray(value) for name, value in params_of(content.denoiser.network).items()}
    table = dit.table(network)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {n: np.ascontiguousarray(x) for n, x in names.write(table, Dialect.DIFFUSERS, params)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
    with open_published(folder) as published:
        names.check(table, published.dialect, published.source)
        found = dict(names.read(table, published.dialect, published.source))
    num_tensors = compare(folder / WEIGHTS, found, params)
    size = config["sample_size"]
    (folder / README).write_text(_model_card(content.origin, content.denoiser.task.objective, network, size))
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers")):
        return Parity(num_tensors, None)
    return Parity(num_tensors, compare_outputs(network, params, folder, size))


def compare_outputs(network: ClassDiT, params: Mapping[str, np.ndarray], folder: Path, size: int) -> float:
    """Calls both networks with the same random latents, at several timesteps and labels, one of which is "no label".

    Returns:
        the largest difference over the largest value.

    Raises:
        ExportMismatch: it is larger than `TOLERANCE`.
    """
    import torch
    from diffusers import DiTTransformer2DModel

    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((len(_TIMESTEPS), network.channels, size, size), np.float32)
    label = np.array([*rng.integers(0, network.num_classes, len(_TIMESTEPS) - 1), network.num_classes])
    theirs: Any = DiTTransformer2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    with torch.no_grad():
        inputs = (torch.from_numpy(x_t), torch.tensor(_TIMESTEPS), torch.from_numpy(label))
        wanted = theirs(*inputs, return_dict=False)[0].numpy()
    definition = network.define()
    t = jnp.asarray([[network.config.time_of(n)] for n in _TIMESTEPS], jnp.float32)
    with jax.default_matmul_precision("highest"):
        output = jax.jit(lambda params, *args: definition.bind(params).output(*args))(
            dict(params), jnp.asarray(x_t.transpose(0, 2, 3, 1)[:, None]), t, jnp.asarray(label, jnp.int32)
        )
    found = np.concatenate([part for part in output if part is not None], axis=-1)[:, 0].transpose(0, 3, 1, 2)
    error = float(np.max(np.abs(found - wanted)) / max(np.max(np.abs(wanted)), np.finfo(np.float32).tiny))
    if not error <= TOLERANCE:  # a difference that is no number is too large as well
        raise ExportMismatch(
            f"{folder}: diffusers computes something else: largest difference over largest value {error:.3g}, allowed "
            f"{TOLERANCE:g}"
        )
    return error


def _model_card(origin: Origin, objective: Any, network: ClassDiT, size: int) -> str:
    config, c = network.config, network.channels
    offset = f" - {-config.timestep_offset}" if config.timestep_offset else ""
    variance = f", then {c} channels that its variance is made of" if config.learned_variance else ""
    imported = "" if origin.imported is None else f"\n{_imported(origin.imported)}\n"
    return f"""---
library_name: diffusers
tags: [dit, dit-video]
---
# {origin.run}

Written by `dit-video export --format diffusers` {dit_video.__version__}: {"ema" if origin.ema else "raw"} weights of
step {origin.step} of the run `{origin.run}`, whose experiment has the fingerprint {origin.fingerprint}.
{imported}
```python
from diffusers import {dit.DIFFUSERS_CLASS}

transformer = {dit.DIFFUSERS_CLASS}.from_pretrained(".")
output = transformer(latents, timestep=timestep, class_labels=labels).sample
```

- `latents`, float32 `[b {c} {size} {size}]`: noisy latents of the run's own codec, of zero mean and unit variance per
  channel before noise. A pipeline of diffusers needs a VAE with the same latents.
- `timestep`, int64 `[b]`: {NUM_TIMESTEPS} t{offset} for noise level t, 0 for data and 1 for noise.
- `labels`, int64 `[b]`: 0 to {network.num_classes - 1}, and {network.num_classes} for none.
- `output`, `[b {2 * c if config.learned_variance else c} {size} {size}]`: what the objective asks for{variance}.

Objective: `{objective}`
"""


def _imported(said: Mapping[str, Any]) -> str:
    files = "".join(f"\n- `{name}`, SHA-256 {digest}" for name, digest in said["sha256"].items())
    return (
        f"The run is the import of `{said['source']}`, {said['dtype']} tensors with {said['dialect']} names:\n{files}"
    )
