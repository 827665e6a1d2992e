"""Benchmark of checkpointing: how long a save blocks training, and the share of digests in it.

The network of experiments/quickstart.py on the devices of this machine. The bound is on the blocking time of a save as
a share of the time of the steps between two saves.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.listener import SaveListener
from dit_video.distributed.sharding import make_mesh, place, shard_frozen
from dit_video.run.open_run import program_of
from dit_video.run.workload import abstract_batch
from dit_video.tasks.latent_diffusion import Denoise

EXPERIMENT = "experiments/quickstart.py:dit"
BOUND = 0.05
HEADS = (
    "network", "device", "bytes", "blocking, median", "longest", "of it digests", "on disk after", "step",
    "steps between saves", "share",
)  # fmt: skip


def measure(num_saves: int = 7, num_steps: int = 10) -> dict[str, Any]:
    """Medians over saves with `num_steps` steps between them; the first of each, which compiles, is left out."""
    experiment = experiments.load(EXPERIMENT)
    mesh = make_mesh(experiment.mesh)
    program = program_of(experiment, mesh)
    state = program.init(experiment.seed)
    assert isinstance(experiment.task, Denoise), f"{EXPERIMENT} trains a diffusion transformer"
    frozen = experiment.task.blank(jax.random.key(0))
    frozen = jax.device_put(frozen, shard_frozen(frozen, mesh))
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_batch(experiment))
    batch = place(batch._replace(moments=rng.normal(size=batch.moments.shape).astype(np.float32)), mesh)
    seconds, lines = [], list[Mapping[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder), listener=SaveListener(record=lines.append)) as checkpoints:
            for save in range(num_saves + 1):
                began = time.perf_counter()
                for _ in range(num_steps):
                    state, _ = program.step(state, frozen, batch, experiment.seed)
                jax.block_until_ready(state)
                seconds.append((time.perf_counter() - began) / num_steps)
                checkpoints.save(save, state, save)
        del lines[0]
    step = statistics.median(seconds[1:])
    blocking = [line["blocking_seconds"] for line in lines]
    between = experiment.schedule.save_every
    return {
        "experiment": EXPERIMENT,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "saves": len(lines),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "bytes": lines[0]["bytes"],
        "blocking_s": round(statistics.median(blocking), 4),
        "longest_s": round(max(blocking), 4),
        "digest_s": round(statistics.median(line["digest_seconds"] for line in lines), 4),
        "written_s": round(statistics.median(line["written_seconds"] for line in lines), 3),
        "step_s": round(step, 4),
        "save_every": between,
        "share": round(max(blocking) / (step * between), 5),
    }


def rows(measured: dict[str, Any]) -> list[list[object]]:
    return [
        [
            f"{EXPERIMENT}, {measured['parameters'] / 1e6:.1f} M parameters",
            measured["device"],
            f"{measured['bytes'] / 1e6:.0f} MB",
            *(
                f"{1000 * measured[name]:.0f} ms"
                for name in ("blocking_s", "longest_s", "digest_s", "written_s", "step_s")
            ),
            measured["save_every"],
            f"{measured['share']:.2%}",
        ]
    ]
