"""The sbatch script: bash understands it, and it does what it says with programs that stand for Slurm's."""

import os
import re
import shlex
import subprocess

import pytest

from dit_video.launch.slurm import Slurm, seconds_of

COMMAND = ["dit-video", "train", "--config=a file.py:x", '--config.name=it\'s $HOME "and" `more`\n*']
# slurm.schedmd.com/sbatch.html, and of these the ones that are written.
SBATCH_OPTIONS = {
    "account",
    "cpus-per-task",
    "gpus-per-node",
    "job-name",
    "nodes",
    "ntasks-per-node",
    "open-mode",
    "output",
    "partition",
    "qos",
    "requeue",
    "signal",
    "time",
}
EVERYTHING = Slurm(
    nodes=2,
    gpus_per_node=8,
    time="1-00:00:00",
    partition="gpu",
    account="video",
    cpus_per_task=12,
    requeue=True,
    setup="export FROM_SETUP=1",
    options=("--qos=high",),
)


def asked(script: str) -> dict[str, str]:
    options = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script, re.MULTILINE)
    assert len(options) == script.count("#SBATCH")
    return dict(options)


def test_it_asks_for_what_was_asked():
    script = EVERYTHING.submission(COMMAND).text
    options = asked(script)
    assert set(options) == SBATCH_OPTIONS
    assert options["ntasks-per-node"] == options["gpus-per-node"] == "8"
    assert options["signal"] == "TERM@300"
    # sbatch reads options until the first line that is neither empty nor a comment.
    assert "#SBATCH" not in script[script.index("set -e") :]


def run_script(tmp_path, script: str, srun_code: int) -> subprocess.CompletedProcess:
    """Runs it with an srun that writes down its words and an scontrol that writes down that it was called."""
    programs = {
        "srun": f'printf "%s\\0" "$FROM_SETUP" "$@" > srun.words; exit {srun_code}',
        "scontrol": 'echo "$@" > scontrol.words',
    }
    for name, body in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    return subprocess.run(["bash"], input=script, text=True, cwd=tmp_path, env=environment)


def test_every_word_of_the_command_survives(tmp_path):
    assert run_script(tmp_path, EVERYTHING.submission(COMMAND).text, 0).returncode == 0
    setup, *words = (tmp_path / "srun.words").read_text().split("\0")[:-1]
    assert setup == "1"
    assert words[-len(COMMAND) :] == COMMAND
    assert words[: -len(COMMAND)] == ["--label", "--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=12"]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (3, True)])
def test_only_what_stopped_early_and_saved_is_queued_again(tmp_path, code, requeued):
    assert run_script(tmp_path, EVERYTHING.submission(COMMAND).text, code).returncode == code
    assert (tmp_path / "scontrol.words").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.words").read_text() == "requeue 17\n"


def test_without_requeue_the_exit_code_is_that_of_the_run(tmp_path):
    script = Slurm(nodes=1, gpus_per_node=1, time="60").submission(COMMAND).text
    assert run_script(tmp_path, script, 3).returncode == 3
    assert not (tmp_path / "scontrol.words").exists()
    assert shlex.join(COMMAND) in script


def test_times_as_slurm_writes_them():
    times = {"90": 5400, "1:30": 90, "12:00:00": 43200, "2-00": 172800, "1-12:30": 131400, "1-00:00:01": 86401}
    assert {time: seconds_of(time) for time in times} == times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "nodes=0: must be at least 1"),
        ({"time": "1 day"}, "time=1 day: must be as Slurm writes it"),
        ({"time": "5"}, "grace_seconds=300: nothing is left of time=5, which is 300 seconds"),
        ({"partition": "a b"}, "partition=a b: sbatch takes"),
        ({"options": ("qos=high",)}, "option=qos=high: must be an option of sbatch in one word"),
    ],
)
def test_mistakes_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        Slurm(**{"nodes": 1, "gpus_per_node": 8, "time": "60", **change})
