"""`dit-video launch`: starts a command on several processes or hosts (local, Slurm, GKE, TPU VMs)."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from dit_video.cli.usage.evaluate import spelled_out
from dit_video.distributed.targets import parse_target
from dit_video.launch.gke import GKE
from dit_video.launch.local import Local, run_together, written_out
from dit_video.launch.slurm import Slurm
from dit_video.launch.submission import Submission, submit
from dit_video.launch.tpu_vm import TPUVM
from dit_video.progress import Terminal


def run_local(arguments: argparse.Namespace) -> int:
    check_command(arguments.words, arguments.commands)
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
    return _hand_over(slurm, arguments)


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
    return _hand_over(gke, arguments)


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
    return _hand_over(tpu_vm, arguments)


def _hand_over(platform: Slurm | GKE | TPUVM, arguments: argparse.Namespace) -> int:
    check_command(arguments.words, arguments.commands)
    submission: Submission = platform.submission(["dit-video", *arguments.words])
    if arguments.dry_run:
        print(submission.text, end="")
        return 0
    return submit(submission)


def check_command(words: Sequence[str], commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Finds a mistake in a command before it is started many times, perhaps on rented machines.

    Args:
        words: what stands after `--`.
        commands: the parser of each command.

    Raises:
        ValueError: there is no such command, or it has no such argument.
        SystemExit: of its parser, which says what is missing or wrong.
    """
    name, *rest = spelled_out(words)
    if name not in commands or name == "launch":
        raise ValueError(
            f"{name}: after -- stands a dit-video command: {', '.join(c for c in commands if c != 'launch')}"
        )
    parsed, unknown = commands[name].parse_known_args(rest)
    # The first must begin an override; the value of an override may be a word of its own.
    options = [word for i, word in enumerate(unknown) if i == 0 or word.startswith("--")]
    for word in options:
        if not (hasattr(parsed, "config") and word.startswith("--config.")):
            raise ValueError(f"unknown argument {word}; see dit-video {name} --help")


def _pair(option: str, text: str, separator: str) -> tuple[str, str]:
    first, found, second = text.partition(separator)
    if not (first and found and second):
        raise ValueError(f"{option}={text}: must have {separator} between two words")
    return first, second


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
