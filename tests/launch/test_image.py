"""The recipe of the image: its RUN lines are executed here, and what a manifest runs is there afterwards."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from dit_video.distributed.targets import parse_target
from dit_video.launch.gke import GKE

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV"}


def recipe() -> Iterator[tuple[str, str]]:
    """Instructions of the Dockerfile with what follows each; lines that end in a backslash are joined."""
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def test_the_recipe_names_no_host_and_takes_what_the_ignored_rest_leaves():
    lines = list(recipe())
    assert {name for name, _ in lines} <= INSTRUCTIONS
    assert not [rest for name, rest in lines if name == "FROM" and "/" in rest]
    assert not re.search(r"https?://|--(extra-)?index-url", (ROOT / "Dockerfile").read_text())
    copied = {word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]}
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied == kept


@pytest.mark.slow
def test_its_run_lines_make_what_the_manifest_runs(tmp_path):
    """In a new virtual environment, which sees the packages of this one, pip among them: none is installed again."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (there,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (there / "packages.pth").write_text(sysconfig.get_path("purelib"))
    environment = {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    folder = tmp_path
    for name, rest in recipe():
        if name == "ARG" or name == "ENV":
            variable, _, value = rest.partition("=")
            environment[variable] = value
        elif name == "WORKDIR":
            folder = tmp_path / rest.lstrip("/")
            folder.mkdir(exist_ok=True)
        elif name == "COPY":
            *sources, to = rest.split()
            for source in sources:
                put = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                put(ROOT / source, folder / to)
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", rest], cwd=folder, env=environment, check=True)
    target, volumes = parse_target("v6e:4x4"), (("claim", "/mnt"),)
    words = ["dit-video", "show", "--config=experiments/quickstart.py", "--json"]
    job = GKE(name="a", image="b", target=target, volumes=volumes).manifest(words)["spec"]["replicatedJobs"][0]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    done = subprocess.run(container["command"], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert f"{there}/dit_video/experiments/quickstart.py" in done.stderr
