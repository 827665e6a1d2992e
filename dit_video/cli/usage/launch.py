"""Options of `dit-video launch`."""

import argparse

from dit_video.cli.usage.arguments import command, number, whole

EXAMPLES = """  dit-video launch local --num_processes=2 -- train --config=experiments/quickstart.py --workdir=runs/two
  dit-video launch slurm --nodes=16 --gpus_per_node=8 --time=1-00 --requeue -- train --config=...
  dit-video launch gke --target=v6e:16x16*4 --name=video --image=IMAGE --volume=CLAIM:/mnt -- train --config=...
  dit-video launch tpu_vm --target=v6e:16x16 --name=video --zone=us-east5-b -- train --config=...

What stands after -- is the dit-video command that every process runs. --dry_run prints what would be submitted."""


LOCAL = """  dit-video launch local --num_processes=2 -- train --config=experiments/quickstart.py --workdir=runs/two
  dit-video launch local --num_processes=2 --fake_devices=4 -- train --config=... --config.mesh.fsdp=8 --workdir=...

Lines come with the index of their process before them. Ctrl-C and SIGTERM go to every process; a process that fails
ends the others. The exit code is that of the processes."""


SLURM = """  dit-video launch slurm --nodes=16 --gpus_per_node=8 --cpus_per_task=12 --time=1-00 --requeue \\
      --setup='source .venv/bin/activate' -- train --config=experiments/grid_dit.py --workdir=runs/grid_dit
  dit-video launch slurm ... --option=--qos=high --option=--exclusive -- train ...
  dit-video launch slurm ... --dry_run -- train ... > job.sbatch       to read, change and sbatch by hand

One process for each GPU. Before the limit of time the run stops and saves; with --requeue it queues
again and goes on."""


GKE_EXAMPLES = """  dit-video launch gke --target=v6e:16x16 --name=video --image=IMAGE --volume=CLAIM:/mnt \\
      -- train --config=experiments/grid_dit.py --workdir=/mnt/runs/grid_dit
  dit-video launch gke --target=v6e:16x16*4 ... --queue=multislice-queue      four slices, on a cluster made by XPK
  dit-video launch gke --target=h100:16x8 ...                               16 nodes of 8 GPUs
  dit-video launch gke ... --dry_run -- train ... > job.yaml            to read, change and kubectl create by hand

One process for each host."""


TPU_VM = """  dit-video launch tpu_vm --target=v6e:16x16 --name=video --zone=us-east5-b \\
      --setup='source venv/bin/activate' -- train --config=experiments/grid_dit.py --workdir=gs://bucket/grid_dit
  dit-video launch tpu_vm ... --option=--spot -- train ...

Asks for the TPUs, waits until they are there, starts the command on every VM, and says how to follow and stop it."""


def add_parser(subparsers) -> None:
    parser = command(subparsers, "launch", "start a command on several processes or hosts", EXAMPLES)
    platforms = parser.add_subparsers(dest="platform", required=True, metavar="PLATFORM")
    _add_local(platforms)
    _add_slurm(platforms)
    _add_gke(platforms)
    _add_tpu_vm(platforms)
    for platform in platforms.choices.values():
        platform.add_argument("--dry_run", action="store_true", help="print what would be submitted; run nothing")
        platform.add_argument("words", nargs="+", metavar="COMMAND", help="after --: what every process runs")
        platform.set_defaults(commands=subparsers.choices)


def _add_local(platforms) -> None:
    parser = command(platforms, "local", "processes on this machine", LOCAL)
    parser.add_argument("--num_processes", type=whole(1), required=True, help="its GPUs are shared out among them")
    parser.add_argument("--fake_devices", type=whole(1), metavar="N", help="CPU devices of each process, to try a mesh")
    parser.add_argument(
        "--grace_seconds",
        type=number(0.0),
        default=10.0,
        help="between SIGTERM and SIGKILL once one failed (default 10)",
    )
    parser.set_defaults(run=_run_local)


def _add_slurm(platforms) -> None:
    parser = command(platforms, "slurm", "an sbatch script", SLURM)
    parser.add_argument("--nodes", type=whole(1), required=True)
    parser.add_argument("--gpus_per_node", type=whole(1), required=True, help="as many processes run on each node")
    parser.add_argument("--time", required=True, help="limit, as Slurm writes it: 12:00:00 or 1-00 (a day)")
    parser.add_argument("--cpus_per_task", type=whole(1), help="CPU cores of each process; decoding needs several")
    parser.add_argument("--job_name", default="dit-video")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument(
        "--grace_seconds", type=whole(0), default=300, help="before the limit, to stop and save (default 300)"
    )
    parser.add_argument("--requeue", action="store_true", help="queue again after it stopped early and saved")
    _add_setup(parser)
    _add_option(parser, "sbatch", "--qos=high")
    parser.set_defaults(run=_run_slurm)


def _add_gke(platforms) -> None:
    parser = command(platforms, "gke", "a JobSet on Google Kubernetes Engine", GKE_EXAMPLES)
    _add_target(parser, "v6e:16x16, v6e:16x16*4 (four slices), v5p:8x8x4 or h100:16x8 (16 nodes of 8)")
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="container image with dit_video installed")
    parser.add_argument(
        "--volume",
        action="append",
        required=True,
        metavar="CLAIM:PATH",
        help="persistent volume claim that every host mounts, for data and run folder; may be repeated",
    )
    parser.add_argument("--namespace", help="default: that of kubectl's context")
    parser.add_argument("--queue", help="of Kueue; multislice-queue on clusters made by XPK")
    parser.add_argument(
        "--node_selector",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="further label that nodes must have, such as cloud.google.com/gke-spot=true; may be repeated",
    )
    parser.add_argument("--max_restarts", type=whole(0), default=3, help="after failures; evictions are not counted")
    parser.add_argument(
        "--grace_seconds", type=whole(0), default=300, help="for an evicted pod to stop and save (default 300)"
    )
    parser.set_defaults(run=_run_gke)


def _add_tpu_vm(platforms) -> None:
    parser = command(platforms, "tpu_vm", "a queued resource of TPU VMs", TPU_VM)
    _add_target(parser, "v6e:16x16, v6e:16x16*4 (four slices) or v5p:8x8x4")
    parser.add_argument("--name", required=True, help="of the queued resource")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default: that of gcloud's configuration")
    parser.add_argument("--runtime_version", help="software of the VMs (default: what goes with the TPU)")
    _add_setup(parser)
    _add_option(parser, "gcloud compute tpus queued-resources create", "--spot")
    parser.set_defaults(run=_run_tpu_vm)


def _add_target(parser: argparse.ArgumentParser, examples: str) -> None:
    parser.add_argument("--target", required=True, help=f"as plan has it: {examples}")


def _add_setup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--setup", metavar="SHELL", help="runs first, such as 'source .venv/bin/activate'")


def _add_option(parser: argparse.ArgumentParser, tool: str, example: str) -> None:
    parser.add_argument(
        "--option", action="append", default=[], help=f"further option of {tool}: --option={example}; may be repeated"
    )


def _run_local(arguments: argparse.Namespace) -> int:
    from dit_video.cli.launch import run_local

    return run_local(arguments)


def _run_slurm(arguments: argparse.Namespace) -> int:
    from dit_video.cli.launch import run_slurm

    return run_slurm(arguments)


def _run_gke(arguments: argparse.Namespace) -> int:
    from dit_video.cli.launch import run_gke

    return run_gke(arguments)


def _run_tpu_vm(arguments: argparse.Namespace) -> int:
    from dit_video.cli.launch import run_tpu_vm

    return run_tpu_vm(arguments)
