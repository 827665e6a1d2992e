"""README of an export folder: what its files are and how they are loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_video.export.inputs import Input

README = "README.md"

_FILES = {
    "model.safetensors": "parameters of the denoiser by name",
    "codec.safetensors": "parameters of the VAE (`vae.*`), `mean` and `std` of its latents per channel",
    "denoiser.stablehlo": "the denoiser as a program for CPU, CUDA and TPU, to be called with `model.safetensors`",
    "decoder.stablehlo": "whitened latents -> video as a program, to be called with `codec.safetensors`",
    "config.json": "architecture, objective, shapes, digests, versions",
}


def write_readme(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes README.md for the files in `folder` and its config.json: what each is and how it is loaded."""
    origin, versions, network = config["origin"], config["versions"], config["network"]
    present = {path.name for path in folder.iterdir()}
    programs = {name for name in present if name.endswith(".stablehlo")}
    inputs = [] if not network else [Input(**one | {"shape": tuple(one["shape"])}) for one in network["inputs"]]
    words = "".join(f", {one.name}" for one in inputs)
    parts = [
        f"# {origin['run']}",
        f"Written by `dit-video export` {versions['dit_video']}: {origin['weights']} weights of step {origin['step']} "
        f"of the run `{origin['run']}`.",
        "\n".join(["| file | |", "|---|---|", *(f"| `{n}` | {what} |" for n, what in _FILES.items() if n in present)]),
    ]
    if programs:
        parts += [
            f"With JAX alone, at any batch size (written by jax {versions['jax']}; loads in "
            "releases of the six months after it):",
            _programs_code(programs, words),
        ]
    parts += ["With `dit_video`, for clips of any length and size:", _package_code(network is not None, inputs)]
    parts += ["\n".join(_conventions(config, inputs))]
    (folder / README).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _programs_code(programs: set[str], inputs: str) -> str:
    lines = ["import jax.export, safetensors.numpy as st  # and flatbuffers installed"]
    calls = {
        "denoiser": f'prediction = denoiser.call(st.load_file("model.safetensors"), x_t, t{inputs})',
        "decoder": 'video = decoder.call(st.load_file("codec.safetensors"), latents)',
    }
    for name, call in calls.items():
        if f"{name}.stablehlo" in programs:
            lines += [f'{name} = jax.export.deserialize(bytearray(open("{name}.stablehlo", "rb").read()))', call]
    return _fenced(lines)


def _package_code(denoiser: bool, inputs: Sequence[Input]) -> str:
    lines = ["import pathlib, dit_video.export.weights", 'export = dit_video.export.weights.load(pathlib.Path("."))']
    if denoiser:
        names = [one.name for one in inputs]
        if len(names) < 2:
            words = names[0] if names else "None"
        else:
            lines.insert(0, "from dit_video.arrays import ImageCond, Text")
            text = f"Text({', '.join(names[:3])})" if "pooled" in names else names[0]
            rest = names[3:] if "pooled" in names else names[1:]
            words = f"ImageCond({', '.join([text, *rest])})" if rest else text
        lines.append(f"prediction = export.network(x_t, t, {words})")
    return _fenced([*lines, "video = export.codec.decode(latents)"])


def _fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _conventions(config: Mapping[str, Any], inputs: Sequence[Input]) -> list[str]:
    """README lines for each input and output array."""
    network, codec = config["network"], config["codec"]
    t, h, w, c = config["latent_shape"]
    T, H, W = config["clip_shape"]
    lines = [
        f"- `latents`, float32 `[b {t} {h} {w} {c}]`: whitened, of zero mean and unit variance per channel; the VAE "
        f"compresses {' x '.join(map(str, codec['compression']))} (frames, rows, columns), the first frame alone.",
        f"- `video`, uint8 `[b {T} {H} {W} 3]`.",
    ]
    if network:
        levels = t if network["per_frame"] else 1
        lines += [
            f"- `x_t`, float32 `[b {t} {h} {w} {c}]`: latents at noise level `t`, float32 `[b {levels}]`, 0 for data "
            "and 1 for noise.",
            "- `prediction`, float32 like `x_t`: what `task.objective` in `config.json` says, as it says x_t of t.",
        ]
        for one in inputs:
            shape = " ".join(["b", *map(str, one.shape[1:])])
            lines.append(f"- `{one.name}`, {one.dtype} `[{shape}]`: {one.meaning}.")
    return lines
