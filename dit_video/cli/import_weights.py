"""dit-video import"""

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from dit_video import experiment as experiments
from dit_video.checkpoint import Checkpoints
from dit_video.cli.arguments import add_config, command, experiment_of
from dit_video.experiment import Experiment, ExperimentError
from dit_video.export import names
from dit_video.export.family import Family
from dit_video.export.folder import fresh_folder
from dit_video.export.recognise import recognise
from dit_video.export.source import PROVENANCE, Published, open_published
from dit_video.nn.module import Params
from dit_video.run_folder import record, write_json
from dit_video.sharding import make_mesh, shard_params
from dit_video.tasks.denoise import Denoise
from dit_video.tasks.task import Task

EXAMPLES = """  dit-video import DiT-XL-2-256/transformer --config=mine.py --out=runs/dit_xl
  dit-video import DiT-XL-2-256x256.pt --sha256=... --config=mine.py --out=runs/dit_xl
  dit-video train --config=mine.py --init_from=runs/dit_xl --workdir=runs/tuned

Reads a folder of diffusers (safetensors, in one file or in shards) or a file of official weights. --config names the
experiment that the weights are for: data, codec and sampler are its own, and its network must be that of the weights;
where it is not, the message says which fields differ. Every tensor is mapped exactly once or nothing is written.
Weights do not say what they predict of which latents, so the experiment must: published DiTs predict the noise of
DDPM's 1000 levels (DiscreteBetas) on latents of Stable Diffusion's VAE.

families: DiT as published (facebookresearch/DiT, diffusers' DiTTransformer2DModel)"""


class Imported(NamedTuple):
    """What is saved: the weights, as raw and as averaged ones."""

    step: int
    params: Params
    ema: Params


def add_parser(subparsers) -> None:
    parser = command(subparsers, "import", "make a run of weights that others have published", EXAMPLES)
    parser.add_argument("source", type=Path, metavar="FOLDER_OR_FILE", help="weights of diffusers or of official code")
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run: new, or empty")
    parser.add_argument("--sha256", metavar="HEX", help="digest that a torch file was published with")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    console = Console()
    experiment = experiment_of(arguments)
    task = experiment.task
    if not isinstance(task, Denoise):
        raise ExperimentError(f"config.task={type(task).__name__}: weights are imported for a Denoise task")
    with open_published(arguments.source, sha256=arguments.sha256) as published, fresh_folder(arguments.out) as folder:
        network = network_of(published, task, arguments.source)
        table = network.table()
        dtype = names.check(table, published.dialect, published.source)
        params = _placed(network, names.read(table, published.dialect, published.source), experiment)
        record(experiment, folder, arguments.overrides, allow_change=False)
        write_json(folder / PROVENANCE, _provenance(published, arguments.source, dtype))
        with Checkpoints(folder, experiment=experiments.to_json(experiment)) as checkpoints:
            checkpoints.finish(0, Imported(0, params, params), next_batch=0)
    lines = [
        f"{len(published.source)} tensors of {dtype}, each mapped once: {sum(x.size for x in params.values()):,} "
        "parameters in float32",
        f"done: {arguments.out}; `dit-video train --init_from={arguments.out}` starts from it; sample, evaluate and "
        "export take it as --workdir",
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


def network_of(published: Published, task: Task, path: Path) -> Family:
    """The network that weights are of, which is that of `task`.

    Raises:
        ValueError: no family has such weights, or the task has another network; names the fields that differ.
    """
    network = recognise(published, task)
    if network is None:
        known = "" if published.config is None else f"_class_name={published.config.get('_class_name')!r}"
        found = known or f"tensors such as {', '.join(list(published.source)[:3])}"
        raise ValueError(f"{path}: {found}: of no family that is known here; `dit-video import --help` lists them")
    if differences := network.differences(task):
        lines = "\n".join(f"  {line}" for line in differences)
        raise ExperimentError(f"{path}: weights of another network than the experiment's; they need\n{lines}")
    return network


def _placed(network: Family, params: Any, experiment: Experiment) -> Params:
    """Each parameter put onto the mesh as it comes, and let go of here."""
    definition, mesh = network.define(), make_mesh(experiment.mesh)
    shardings = shard_params(definition.axes, definition.shapes, mesh)
    return {name: jax.device_put(value, shardings[name]) for name, value in params}


def _provenance(published: Published, path: Path, dtype: np.dtype) -> dict[str, Any]:
    """Where the weights of a run came from."""
    digests = {}
    for name in published.files:
        with name.open("rb") as file:
            digests[name.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "source": path.name,
        "dialect": published.dialect.value,
        "dtype": str(dtype),
        "sha256": digests,
        "config": published.config,
    }
