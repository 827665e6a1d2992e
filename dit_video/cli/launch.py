"""`dit-video launch`: starts a command on several processes or hosts (local, Slurm, GKE, TPU VMs)."""

import argparse
import sys

from dit_video.cli.launch_checks import check_experiment, check_lasting, parsed_command
from dit_video.distributed.targets import parse_target
from dit_video.launch.gke import GKE
from dit_video.launch.local import Local, run_together, written_out
from dit_video.launch.slurm import Slurm
from dit_video.launch.submission import Submission, submit
from dit_video.launch.tpu_vm import TPUVM
from dit_video.progress import Terminal


def run_local(arguments: argparse.Namespace) -> int:
    devices = None if arguments.fake_devices is None else arguments.num_processes * arguments.fake_devices
    check_experiment(parsed_command(arguments.words, arguments.commands), devices)
    local = Local(
        num_processes=arguments.num_processes,
        fake_devices=arguments.fake_devices,
        grace_seconds=arguments.grace_seconds,
    )
    program = [sys.executable, "-m", "dit_video", *arguments.words]
    environments = local.environments()
    if arguments.dry_run:
        print(written_out(program, environments), end="")
        return 0
    outcome = run_together(program, environments, grace_seconds=local.grace_seconds, write=_write)
    if outcome.message is not None:
        Terminal(stderr=True).print(outcome.message)
    return outcome.exit_code


def run_slurm(arguments: argparse.Namespace) -> int:
    slurm = Slurm(
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        time=arguments.time,
        job_name=arguments.job_name,
        partition=arguments.partition,
        account=arguments.account,
        cpus_per_task=arguments.cpus_per_task,
        grace_seconds=arguments.grace_seconds,
        requeue=arguments.requeue,
        setup=arguments.setup,
        options=tuple(arguments.option),
    )
    return _hand_over(slurm, arguments, arguments.nodes * arguments.gpus_per_node)


def run_gke(arguments: argparse.Namespace) -> int:
    gke = GKE(
        name=arguments.name,
        image=arguments.image,
        target=parse_target(arguments.target),
        volumes=tuple(_pair("volume", text, ":") for text in arguments.volume),
        namespace=arguments.namespace,
        queue=arguments.queue,
        node_selector=dict(_pair("node_selector", text, "=") for text in arguments.node_selector),
        max_restarts=arguments.max_restarts,
        grace_seconds=arguments.grace_seconds,
    )
    check_lasting(parsed_command(arguments.words, arguments.commands), gke.volumes)
    return _hand_over(gke, arguments, gke.target.num_devices)


def run_tpu_vm(arguments: argparse.Namespace) -> int:
    tpu_vm = TPUVM(
        name=arguments.name,
        zone=arguments.zone,
        target=parse_target(arguments.target),
        project=arguments.project,
        runtime_version=arguments.runtime_version,
        setup=arguments.setup,
        options=tuple(arguments.option),
    )
    return _hand_over(tpu_vm, arguments, tpu_vm.target.num_devices)


def _hand_over(platform: Slurm | GKE | TPUVM, arguments: argparse.Namespace, num_devices: int) -> int:
    check_experiment(parsed_command(arguments.words, arguments.commands), num_devices)
    submission: Submission = platform.submission(["dit-video", *arguments.words])
    if arguments.dry_run:
        print(submission.text, end="")
        return 0
    return submit(submission)


def _pair(option: str, text: str, separator: str) -> tuple[str, str]:
    first, found, second = text.partition(separator)
    if not (first and found and second):
        raise ValueError(f"{option}={text}: must have {separator} between two words")
    return first, second


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
