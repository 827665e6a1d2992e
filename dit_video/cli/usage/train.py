"""Options of `dit-video train`."""

import argparse

from dit_video.cli.usage.arguments import add_config, add_processes, add_workdir, command, run_path

EXAMPLES = """  dit-video train --config=experiments/quickstart.py:vae --workdir=runs/quickstart_vae
  dit-video train --config=experiments/quickstart.py --workdir=runs/quickstart_dit --config.optimizer.learning_rate=3e-4
  dit-video train --config=experiments/grid_dit.py --workdir=runs/finetuned --init_from=runs/grid_dit

The same command in the same workdir goes on where the run stopped. Ctrl-C and SIGTERM finish the step, save and exit
with 3; of several processes, one that gets it stops all at one step. For a limit of time let the scheduler send it
early enough, as Slurm does with --signal=TERM@300: it is waited for at most one step, an evaluation, and a save.

config.faults says what to do about a loss that is not finite or far too high, and about damaged records;
RUN/events.jsonl says what happened. Where something takes far longer than usual, RUN/stacks_*.txt shows why."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "train", "train an experiment, or go on training it", EXAMPLES)
    add_config(parser)
    add_workdir(parser)
    parser.add_argument(
        "--init_from",
        type=run_path,
        metavar="RUN",
        help="start from this run's averaged weights; its network must compute the same (remat, precision may differ)",
    )
    parser.add_argument(
        "--allow_change",
        action="store_true",
        help="go on although the experiment is not the one it was started with, or the network that of --init_from",
    )
    parser.add_argument(
        "--allow_data_change",
        action="store_true",
        help="go on although the data are not those it was started with; batches are others from the next one on",
    )
    parser.add_argument("--profile", action="store_true", help="trace a few steps into RUN/profile (view in Perfetto)")
    parser.add_argument(
        "--random_frozen",
        action="store_true",
        help="train on a codec and encoders with random weights, and without caches: for proofs and measurements",
    )
    add_processes(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.train import main

    return main(arguments)
