"""What compilers say of a small train step of Wan for TPU v5p, v6e and H100: a guard against slower or larger programs.

    python -m tools.step_guard                # compiles for each target whose compiler is installed, and compares
    python -m tools.step_guard --write        # writes docs/step_guard.json
    python -m tools.step_guard --only v6e:2x2

Two blocks of the width of Wan 1.3B, 4,032 tokens a clip (no multiple of a kernel's block), one clip a device. Nothing
runs: cycles are libtpu's estimate of everything but attention; those of attention, of one layer of 32,760 tokens, are
from the schedule of its kernels. A figure that grew by more than 3 % is an error.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from dit_video.cli.plan import prepare
from dit_video.data.dataset import Data
from dit_video.data.sources import LatentCache, VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.distributed.targets import parse_target
from dit_video.dit.condition import EmbeddedText
from dit_video.dit.network import Remat
from dit_video.dit.wan import WAN_1_3B
from dit_video.experiment import Experiment
from dit_video.nn.module import Precision
from dit_video.nn.softmax_attention import Kernel, attend_local
from dit_video.plan.kernels import Kind, read_kernels
from dit_video.plan.programs import TrainStep
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.training.intervals import Schedule
from dit_video.training.optimizer import AdamW
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig
from tools.kernel_schedule import DUMP_FLAGS, kernel_cycles

FIGURES = Path(__file__).parent.parent / "docs/step_guard.json"
TARGETS = {"v5p:2x2x1": "libtpu", "v6e:2x2": "libtpu", "h100:1x4": "jax_cuda13_plugin"}
TOLERANCE = 0.03
# Of the attention whose schedule is looked at: that of one layer of Wan 1.3B at 480p, 81 frames.
_TOKENS, _HEADS, _HEAD_DIM = 32_760, 12, 128
Figures = dict[str, int]


def get_config(remat: str = "full") -> Experiment:
    """The experiment that is compiled; `arg` is its rematerialisation."""
    return Experiment(
        task=Denoise(
            network=dataclasses.replace(WAN_1_3B, depth=2, remat=Remat(remat)),
            codec=TrainedCodec(vae=VideoVAEConfig(), run="runs/vae"),
            condition=EmbeddedText(hidden_size=4096, pooled_size=1, num_tokens=512),
            precision=Precision.BFLOAT16,
        ),
        data=Data(
            source=VideoSet(directory="data/videos"),
            clips=ClipTransform(num_frames=33, size=(256, 448)),
            batch_size=4,
            cache=LatentCache(directory="data/latents"),
        ),
        optimizer=AdamW(),
        schedule=Schedule(num_steps=100_000),
        mesh=MeshShape(data=1, fsdp=-1),
    )


def measure_step(name: str, remat: str) -> Figures:
    """Figures of the step of one device, compiled here for a target by name."""
    target = parse_target(name)
    experiment = get_config(remat)
    mesh = make_mesh(experiment.mesh, target.devices())
    lowered = TrainStep().prepare(experiment, mesh, name).lower()
    return figures_of(lowered.compile(compiler_options=dict(target.compiler_options)))


def figures_of(compiled: jax.stages.Compiled) -> Figures:
    """Cycles, bytes, FLOPs and temporaries of a compiled program."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None, "XLA's compilers for CPU, GPU and TPU all provide the program's text"
    assert memory is not None, "and its memory"
    kernels = read_kernels(text)
    return {
        "cycles_without_attention": sum(kernel.cycles for kernel in kernels),
        "attention_calls": sum(kernel.runs for kernel in kernels if kernel.kind is Kind.ATTENTION),
        "bytes": sum(kernel.bytes for kernel in kernels),
        "matmul_flops": sum(kernel.flops for kernel in kernels),
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }


def measure_attention(name: str, folder: Path) -> Figures:
    """Cycles of the kernels of one layer's self-attention, forward and backward, and the bytes they take meanwhile.

    Args:
        folder: where libtpu, which was started with `DUMP_FLAGS`, writes schedules.
    """
    there = jax.sharding.SingleDeviceSharding(parse_target(name).devices()[0])
    x = jax.ShapeDtypeStruct((1, _TOKENS, _HEADS, _HEAD_DIM), jnp.bfloat16, sharding=there)

    def both(q, k, v, d_out):
        out, back = jax.vjp(lambda q, k, v: attend_local(q, k, v, kernel=Kernel.PALLAS), q, k, v)
        return out, back(d_out)

    compiled = jax.jit(both).lower(x, x, x, x).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "libtpu provides memory statistics"
    cycles = kernel_cycles(folder, "mha")
    if not cycles:
        raise ValueError(f"{folder}: libtpu wrote no schedule of attention; start it with {DUMP_FLAGS}")
    beside = sum(kernel.cycles for kernel in read_kernels(compiled.as_text() or ""))
    return {
        "attention_layer_cycles": sum(cycles.values()),
        "attention_layer_cycles_beside_kernels": beside,
        "attention_layer_temporaries": memory.temp_size_in_bytes,
    }


def _in_processes(name: str, remat: str) -> Figures:
    """All figures of a target, each part in a process of its own: compilers read their options once."""
    step = _ask("--step", name, remat)
    if parse_target(name).family not in ("v5p", "v6e"):
        return step
    with tempfile.TemporaryDirectory() as folder:
        return step | _ask("--attention", name, folder, LIBTPU_INIT_ARGS=DUMP_FLAGS.format(folder=folder))


def _ask(*words: str, **environment: str) -> Figures:
    command = [sys.executable, "-m", "tools.step_guard", *words]
    answer = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def grown(before: Figures, now: Figures) -> list[str]:
    """A line for each figure that grew by more than the tolerance."""
    return [
        f"{name}: {before[name]:,} -> {number:,} ({number / before[name] - 1:+.1%})"
        for name, number in now.items()
        if name in before and number > before[name] * (1 + TOLERANCE)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {FIGURES.name}")
    parser.add_argument("--only", metavar="TARGET", choices=TARGETS)
    parser.add_argument("--remat", default="full", help="none, dots, full or offload")
    parser.add_argument("--step", nargs=2, metavar=("TARGET", "REMAT"), help=argparse.SUPPRESS)
    parser.add_argument("--attention", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if part := arguments.step or arguments.attention:
        prepare(parse_target(part[0]))
        made = measure_step(*part) if arguments.step else measure_attention(part[0], Path(part[1]))
        print(json.dumps(made))
        return 0
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    failed = False
    for name, compiler in TARGETS.items():
        if name != (arguments.only or name) or importlib.util.find_spec(compiler) is None:
            continue
        row = f"{name} remat={arguments.remat}"
        now = _in_processes(name, arguments.remat)
        lines = grown(known.get(row, {}), now)
        print(row, json.dumps(now, indent=1), *lines, sep="\n")
        failed = failed or bool(lines)
        known[row] = now
    if arguments.write:
        FIGURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return int(failed and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
