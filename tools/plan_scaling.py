"""Scaling tables and plot of docs/scaling.md: predicted cost of DiTs of 1.3, 5 and 14 billion parameters.

    python tools/plan_scaling.py table       # models x lengths x machines, each searched by `dit-video plan --fit`
    python tools/plan_scaling.py presets     # the experiments of experiments/ on one machine each
    python tools/plan_scaling.py growth      # one model on 8 to 4096 GPUs
    python tools/plan_scaling.py write       # docs/scaling.md and docs/scaling.png from what there is

This file is an experiment as well, so that every row can be had alone:

    dit-video plan --config=tools/plan_scaling.py:14B-32k --target=v6e:16x16 --fit

A row takes minutes of one core. Each is a process of its own, is written to docs/scaling.jsonl when it is done, and is
not done again: stop the program when you like, and start it again.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.hardware import GIB
from dit_video.distributed.sharding import MeshShape
from dit_video.dit.dit import DiTConfig
from dit_video.dit.network import Remat
from dit_video.experiment import Experiment
from dit_video.nn.module import Precision
from dit_video.progress import counted
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig

ROOT = Path(__file__).parent.parent
RESULTS, DOCUMENT, PLOT = ROOT / "docs/scaling.jsonl", ROOT / "docs/scaling.md", ROOT / "docs/scaling.png"

# Heads of 128, as kernels of attention like them.
MODELS = {
    "1.3B": DiTConfig(hidden_size=1536, depth=30, num_heads=12),
    "5B": DiTConfig(hidden_size=3072, depth=30, num_heads=24),
    "12.7B": DiTConfig(hidden_size=5120, depth=27, num_heads=40),
    "14B": DiTConfig(hidden_size=5120, depth=30, num_heads=40),
}
# (frames, height, width) and clips in a batch of 8.4 million tokens: 480p x 81 frames is 32 760 tokens, 720p x 141
# frames is 129 600.
LENGTHS = {"32k": ((81, 480, 832), 256), "128k": ((141, 720, 1280), 64)}
TARGETS = ("v5e:16x16", "v6e:16x16*4", "v5p:8x8x8", "h100:16x8")
GROWTH = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# The largest number of devices that the 1.3B model's parameters are split over there.
SPLITS = (8, 512)


def get_config(arg: str = "1.3B-32k") -> Experiment:
    """`arg` is MODEL-LENGTH, such as 14B-128k."""
    model, _, length = arg.partition("-")
    if model not in MODELS or length not in LENGTHS:
        raise ValueError(f"{arg}: must be one of {', '.join(MODELS)}, a hyphen and one of {', '.join(LENGTHS)}")
    (num_frames, height, width), rows = LENGTHS[length]
    return Experiment(
        task=Denoise(
            network=dataclasses.replace(MODELS[model], remat=Remat.FULL),
            codec=TrainedCodec(vae=VideoVAEConfig(), run="runs/vae"),
            condition=None,
            precision=Precision.BFLOAT16,
        ),
        data=Data(
            source=VideoSet(directory="data/videos"),
            clips=ClipTransform(num_frames=num_frames, size=(height, width)),
            batch_size=rows,
            cache=LatentCache(directory="data/latents"),
        ),
        optimizer=AdamW(),
        schedule=Schedule(num_steps=100_000),
        mesh=MeshShape(data=1, fsdp=-1),
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of `dit-video plan`."""

    table: str
    name: str
    words: tuple[str, ...]

    @property
    def key(self) -> str:
        return " ".join((self.table, self.name, *self.words))


def table_rows(num_plans: int) -> Iterator[Row]:
    fit = f"--fit={num_plans}"
    for length in LENGTHS:
        for model in ("1.3B", "5B", "14B"):
            for target in TARGETS:
                name = f"{model}-{length}"
                yield Row("table", name, (f"--config=tools/plan_scaling.py:{name}", f"--target={target}", fit))
    # One clip a device: the smallest batch there is.
    small = ("--config=tools/plan_scaling.py:12.7B-32k", "--target=v5e:4x4", "--config.data.batch_size=16")
    yield Row("excess", "12.7B-32k", small)


def preset_rows() -> Iterator[Row]:
    for name, target in (("grid_dit", "v6e:2x4"), ("video_1b", "h100:16x8"), ("video_14b", "v5p:8x8x8")):
        yield Row("presets", name, (f"--config=experiments/{name}.py", f"--target={target}"))


def growth_rows() -> Iterator[Row]:
    """One clip a GPU, so that arithmetic of a device stays the same."""
    for split in SPLITS:
        for number in GROWTH:
            fsdp = min(split, number)
            mesh = (f"--config.mesh.data={number // fsdp}", f"--config.mesh.fsdp={fsdp}")
            config = ("--config=tools/plan_scaling.py:1.3B-32k", f"--config.data.batch_size={number}")
            yield Row("growth", f"fsdp up to {split}", (*config, f"--target=h100:{number // 8}x8", *mesh))


def run_rows(rows: Sequence[Row], limit_s: int) -> None:
    done = {record["key"] for record in records()}
    left = [row for row in rows if row.key not in done]
    print(f"{len(rows) - len(left)} of {len(rows)} rows are there")
    for row in counted(left, "rows", total=len(left), unit="rows"):
        started = time.monotonic()
        try:
            result = subprocess.run(
                [sys.executable, "-m", "dit_video", "plan", *row.words, "--json"],
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            print(f"{row.key}: not done within {limit_s} s", file=sys.stderr)
            continue
        if not result.stdout.startswith("{"):
            print(f"{row.key}: {result.stderr[-600:]}", file=sys.stderr)
            continue
        record = {"key": row.key, "table": row.table, "name": row.name, "words": row.words}
        record |= {"seconds": round(time.monotonic() - started), "found": json.loads(result.stdout)}
        record |= {"versions": {package: version(package) for package in ("jax", "jaxlib")}}
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


def records(table: str | None = None) -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return [record for record in lines if table in (None, record["table"])]


def best_of(record: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The plan of a row, and the overrides that it was found with; None where nothing fits."""
    result = record["found"]
    if "compiled" not in result:
        return result, ""
    if result["best"] is None:
        return None, ""
    best = result["compiled"][result["best"]]
    return best["plan"], " ".join(best["overrides"])


def place_of(record: dict[str, Any]) -> tuple[int, ...]:
    """Where a row of the table stands: by machine, then by length, then by model."""
    model, _, length = record["name"].partition("-")
    return TARGETS.index(target_of(record)), list(LENGTHS).index(length), list(MODELS).index(model)


def target_of(record: dict[str, Any]) -> str:
    return next(word for word in record["words"] if word.startswith("--target=")).removeprefix("--target=")


COLUMNS = (
    "model",
    "target",
    "mesh",
    "remat, parts",
    "peak, GiB",
    "of",
    "step, s",
    "MFU",
    "binds",
    "tokens/s",
    "compiled, s",
)
HEADER = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|\n"


def table(rows: Sequence[dict[str, Any]]) -> str:
    return HEADER + "".join(line(record) for record in rows)


def line(record: dict[str, Any]) -> str:
    plan, words = best_of(record)
    target = target_of(record)
    if plan is None:
        tried = len(record["found"]["compiled"])
        return f"| {record['name']} | `{target}` | none of {tried} plans fits | | | | | | | | |\n"
    memory, best = plan["memory"], plan.get("best_case")
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items() if size > 1)
    remat = re.search(r"remat=(\w+)", words)
    parts = re.search(r"num_microbatches=(\d+)", words)
    how = f"{remat[1] if remat else 'as given'}, {parts[1] if parts else 'as given'}"
    time_cells = (
        " | | | "
        if best is None
        else (f"{best['step_seconds']:.2f} | {best['mfu']:.0%} | {best['binding']} | {best['tokens_per_second']:,.0f}")
    )
    return (
        f"| {record['name']} | `{target}` | {mesh} | {how} | {memory['peak'] / GIB:.1f} | {memory['hbm'] / GIB:.1f} | "
        f"{time_cells} | {plan['compile_seconds']:.0f} |\n"
    )


def excess() -> str:
    text = ""
    for record in records("excess"):
        result = record["found"]
        memory = result["memory"]
        text += (
            f"`dit-video plan {' '.join(record['words'])}` exits with 1: the peak is {memory['peak'] / GIB:.1f} GiB, "
            f"{result['excess_bytes'] / GIB:.1f} GiB more than a device has. What would change that:\n\n"
        )
        for cure in result["remedies"]:
            verdict = "not compiled"
            if cure["peak"] is not None:
                verdict = f"peak {cure['peak'] / GIB:.1f} GiB, {'fits' if cure['fits'] else 'does not fit'}"
            text += f"- `{' '.join(cure['words'])}`: {cure['reason']} ({verdict})\n"
    return text


def plot() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for split in SPLITS:
        rows = [record["found"] for record in records("growth") if record["name"] == f"fsdp up to {split}"]
        rows.sort(key=lambda result: result["num_devices"])
        devices = [result["num_devices"] for result in rows]
        state_bytes = [sum(part["bytes"] for part in result["memory"]["parts"]) for result in rows]
        marker = {"marker": ".", "label": f"parameters split over {split} devices at most"}
        lines = axes[0].plot(devices, [result["memory"]["peak"] / GIB for result in rows], **marker)
        axes[0].plot(devices, [size / GIB for size in state_bytes], ":", color=lines[0].get_color())
        sums = [
            [sum(one[kind] for one in result["traffic"]["collectives"]) / GIB for result in rows]
            for kind in ("inner_bytes", "outer_bytes")
        ]
        axes[1].plot(devices, sums[0], **marker, color=lines[0].get_color())
        axes[1].plot(devices, sums[1], "--", color=lines[0].get_color())
    titles = ("peak memory; dotted: state", "received in a node; dashed: from others")
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="GPUs", ylabel="GiB", ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.set_xticks(GROWTH, [f"{number:,}" for number in GROWTH], rotation=45)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(PLOT, dpi=150)


def write() -> None:
    """Puts the tables into the document, between the marks that name them."""
    text = DOCUMENT.read_text()
    tables = {
        "table": table(sorted(records("table"), key=place_of)),
        "presets": table(records("presets")),
        "excess": excess(),
    }
    for name, content in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, there, after = rest.partition(end)
        if not there:
            raise ValueError(f"{DOCUMENT}: has no {begin.strip()} ... {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    DOCUMENT.write_text(text)
    plot()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "presets", "growth", "write"])
    parser.add_argument("--only", default="", help="rows whose words contain this")
    parser.add_argument("--num_plans", type=int, default=3, help="plans that are compiled for each row of the table")
    parser.add_argument("--limit_s", type=int, default=1800, help="seconds that a row may take")
    arguments = parser.parse_args()
    if arguments.what == "write":
        write()
        return
    rows = {
        "table": list(table_rows(arguments.num_plans)),
        "presets": list(preset_rows()),
        "growth": list(growth_rows()),
    }
    run_rows([row for row in rows[arguments.what] if arguments.only in row.key], arguments.limit_s)


if __name__ == "__main__":
    main()
