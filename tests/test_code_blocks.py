"""Code blocks of README and docs: each command is one that this version takes, Python is Python, JSON is JSON.

Commands are read as the command line reads them, and not run: a block that names a command, an option or an experiment
that is not there fails. What they do is run by the tests of each command.
"""

import ast
import functools
import json
import re
import shlex
from pathlib import Path

import pytest

from dit_video.cli.main import _parser
from dit_video.cli.usage import evaluate

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(language: re.Pattern) -> list:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if language.fullmatch(match[2]):
                where = f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}"
                found.append(pytest.param(match[3], id=where))
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


@pytest.mark.parametrize("block", blocks(re.compile("python|py")))
def test_python_is_python(block):
    ast.parse(block)


@pytest.mark.parametrize("block", blocks(re.compile("json")))
def test_json_is_json(block):
    json.loads(block)
