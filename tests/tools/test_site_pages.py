"""The documentation site: what is generated names everything, the site builds strictly, and asks no other host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.cli.main import COMMANDS
from dit_video.config.names import MODULES
from tools.site_pages import commands, components, experiments, notebook

ROOT = Path(__file__).parent.parent.parent


def headings(page: str, level: int) -> list[str]:
    outside_of_code = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return re.findall(rf"^{'#' * level} (.+)$", outside_of_code, re.MULTILINE)


def test_every_command_has_its_help():
    page = commands()
    named = {heading.split()[0] for heading in headings(page, 2)}
    modules = {module.__name__.rpartition(".")[2] for module in COMMANDS}
    assert {name.removesuffix("_weights").replace("_", "-") for name in modules} <= named
    assert "evaluate run" in headings(page, 2)
    assert page.count("usage: dit-video") == len(headings(page, 2))


def test_every_component_has_its_fields():
    page = components()
    assert sorted(headings(page, 3)) == sorted(MODULES)
    assert re.search(r"^\| `num_heads` \| `int` \| .+ \|", page, re.MULTILINE)
    assert "| `learning_rate` | `float` |" in page


def test_every_experiment_has_its_command_and_result():
    page = experiments()
    assert headings(page, 2) == sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
    assert "Result of record" in page


def test_the_notebook_is_a_page_too():
    page = notebook()
    assert "## Judge" in page
    assert 'run = dit_video.open("runs/mine")' in page
    assert page.count("```") % 2 == 0


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        asked = re.findall(r'<(?:script|img|iframe|video|source)[^>]*\ssrc="?([^"\s>]+)', text)
        asked += re.findall(r'<link[^>]*rel="?(?:stylesheet|icon|preconnect|preload)"?[^>]*href="?([^"\s>]+)', text)
        asked += re.findall(r'<link[^>]*href="?([^"\s>]+)"?[^>]*rel="?(?:stylesheet|icon|preconnect|preload)', text)
        assert asked
        assert not [address for address in asked if re.match(r"(https?:)?//", address)], page
    assert not [path for path in tmp_path.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", path.read_text())]
