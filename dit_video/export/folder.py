"""The folder that an export is: there whole or not at all, and it says itself how it is loaded."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends, and is removed when it fails.

    Raises FileExistsError where `out` holds something already.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"--out {out}: is there already and not empty; name another folder or remove this one")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def write_readme(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes README.md: what the files are and how each is loaded, for an export with this config.json."""
    network, codec, origin = config["network"], config["codec"], config["origin"]
    has = {path.name for path in folder.iterdir()}
    about = f"{origin['weights']} weights of step {origin['step']} of the run `{origin['run']}`"
    parts = [
        f"# {origin['run']}\n\nWritten by `dit-video export` {config['versions']['dit_video']}: {about}. `config.json` says "
        "the rest: architecture, objective, digests, versions."
    ]
    files = ["| file | what it holds |", "|---|---|"]
    for name, what in {
        "model.safetensors": "parameters of the denoiser, by name",
        "codec.safetensors": "parameters of the VAE (`vae.*`), per-channel `mean` and `std` of its latents",
        "denoiser.stablehlo": "the denoiser as a program for CPU, CUDA and TPU; takes `model.safetensors`",
        "decoder.stablehlo": "whitened latents to uint8 video as a program; takes `codec.safetensors`",
    }.items():
        if name in has:
            files.append(f"| `{name}` | {what} |")
    parts.append("\n".join(files))
    t, h, w, c = config["latent_shape"]
    if "decoder.stablehlo" in has:
        parts.append(_programs_usage(config))
    call = "network(x_t, t, label)" if network and network["num_classes"] else "network(x_t, t)"
    lines = ["from pathlib import Path", "from dit_video.export.weights import load", 'export = load(Path("."))']
    if network:
        lines.append(f"prediction = export.{call.replace('(x_t, t)', '(x_t, t, None)')}")
    lines.append("video = export.codec.decode(latents)")
    parts.append("With `dit_video`, for clips of any length and size:\n\n" + _code(lines))
    conventions = [
        f"- latents: float32 `[b t h w c]` of zero mean and unit variance per channel, here `[b {t} {h} {w} {c}]`; "
        f"pixels of the codec = `latents * std + mean` decoded, {' x '.join(map(str, codec['compression']))} "
        "(frames, rows, columns) pixels a cell, the first frame alone.",
        "- video: uint8 `[b T H W 3]`, here `[b {} {} {} 3]`.".format(*config["clip_shape"]),
    ]
    if network:
        conventions.append(
            "- t: noise level, 0 is data and 1 is noise. What `prediction` is, and x_t of t, is `task.objective` "
            "in `config.json`."
        )
        if network["num_classes"]:
            conventions.append(
                f"- label: int32 `[b]`, 0 to {network['num_classes'] - 1}; {network['num_classes']} means none."
            )
    parts.append("\n".join(conventions))
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _programs_usage(config: Mapping[str, Any]) -> str:
    network = config["network"]
    lines = ["import jax, safetensors.numpy as st  # and flatbuffers installed"]
    if network:
        arguments = "x_t, t, label" if network["num_classes"] else "x_t, t"
        lines += [
            'denoiser = jax.export.deserialize(bytearray(open("denoiser.stablehlo", "rb").read()))',
            f'prediction = denoiser.call(st.load_file("model.safetensors"), {arguments})',
        ]
    lines += [
        'decoder = jax.export.deserialize(bytearray(open("decoder.stablehlo", "rb").read()))',
        'video = decoder.call(st.load_file("codec.safetensors"), latents)',
    ]
    return (
        f"With JAX alone, for any batch b (written by jax {config['versions']['jax']}; jax promises to load such files "
        "for six months):\n\n" + _code(lines)
    )


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
