"""Code blocks of README and docs: each is run by a test or says why not, in a comment before it.

    <!-- run by FILE::TEST -->     that test reads the page, or is the command
    <!-- not run: WHY -->          its commands are read here as the command line reads them

So a block that names a command, an option or an experiment that is not there fails, whether it is run or not. Python is
Python, JSON is JSON.
"""

import ast
import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import dit_video
from dit_video.cli.main import _parser
from dit_video.cli.usage import evaluate
from dit_video.config.names import PUBLIC
from dit_video.evaluation.features import Extractor

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block, and the comments right before it.
BLOCK = re.compile(
    r"(?P<marks>(?:^<!--[^\n]*-->\n)*)^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)
MARK = re.compile(r"<!-- (?:run by (?P<test>\S+)|not run: (?P<why>.+)) -->")
HERE = f"tests/{Path(__file__).name}::test_python_without_data_is_run"


def blocks(language: re.Pattern, marked: Callable[[str], bool] = lambda marks: True) -> list:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if language.fullmatch(match["language"]) and marked(match["marks"]):
                where = f"{page.name}:{text.count(chr(10), 0, match.start('indent')) + 1}"
                found.append(pytest.param(match["text"], id=where))
    return found


def commands(block: str) -> list[list[str]]:
    """Words of the commands of this program in a block, without comments; lines that end in a backslash are joined."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "dit-video" in line]
    return [w[w.index("dit-video") + 1 :] for w in words if "dit-video" in w]


parser = functools.cache(_parser)
SHELL = [p for p in blocks(re.compile("|bash|sh|console")) if commands(p.values[0])]


@pytest.mark.parametrize("block", SHELL)
def test_every_command_is_one_that_this_version_takes(block):
    for words in commands(block):
        arguments, rest = parser().parse_known_args(evaluate.spelled_out([w for w in words if w != "..."]))
        assert callable(arguments.run)
        assert all(word.startswith("--config.") for word in rest), words
        for word in words:
            if file := re.fullmatch(r"--config=((?:experiments|tools)/\w+\.py)(:.*)?", word):
                assert (ROOT / file[1]).is_file(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_by_a_test_or_says_why_not(page):
    for match in BLOCK.finditer(page.read_text()):
        marks = MARK.findall(match["marks"])
        assert len(marks) == 1, f"{page.name}: says neither what runs it nor why nothing does:\n{match['text']}"
        ((test, why),) = marks
        for file in re.findall(r"(?:tests|docs)/[\w/]+(?:\.\w+)?", why):
            assert (ROOT / file).exists(), why
        if test:
            file, _, name = test.partition("::")
            source = (ROOT / file).read_text()
            assert f"def {name}(" in source or file == ".ci/run", test
            assert page.name in source or (ROOT / file).samefile(__file__), f"{test} does not read {page.name}"


@pytest.mark.parametrize("block", blocks(re.compile("python"), lambda marks: f"run by {HERE}" in marks))
def test_python_without_data_is_run(block, tmp_path, monkeypatch):
    """What a block takes for granted, the public names and a set, is there."""
    monkeypatch.chdir(tmp_path)
    names = {name: getattr(dit_video, name) for name in re.findall(r"\b[A-Z]\w+", block) if name in PUBLIC}
    exec(block, names)
    made = names["get_extractor"]("weights") if "get_extractor" in names else names["data"]
    assert isinstance(made, Extractor | dit_video.Data)


@pytest.mark.parametrize("block", blocks(re.compile("python|py")))
def test_python_is_python(block):
    ast.parse(block)


@pytest.mark.parametrize("block", blocks(re.compile("json")))
def test_json_is_json(block):
    json.loads(block)
