"""The rules of the house, checked by machine: style, types, who may import whom, names and sizes of files."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SOURCES = sorted(p for folder in ("dit_video", "experiments", "tools") for p in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Words that name no subject: what would go there belongs to a room.
NO_SUBJECT = {"utils", "util", "common", "helpers", "misc", "lib"}
# Alarms, not goals: what grows past them has two subjects.
MAX_LINES = 500
MAX_FUNCTION_LINES = 100
# All that lies outside of a room.
LOOSE = {"__init__", "__main__", "arrays", "experiment", "progress"}


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)


def test_ruff_finds_nothing():
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", ".")):
        result = run(*command)
        assert result.returncode == 0, result.stdout


def test_the_import_contract_is_kept():
    result = run("lint-imports", "--no-cache")
    assert result.returncode == 0, result.stdout
    assert "3 kept, 0 broken" in result.stdout


def test_types_are_sound():
    result = run("pyrefly", "check")
    assert result.returncode == 0, result.stdout


A_PATH = re.compile(r"[{._](path|folder|directory|dir|out|workdir|file|archive)(![rs])?\}$")


def unquoted(node: ast.JoinedStr) -> list[str]:
    """Paths that a printed command has as they are, where a shell may read them as more than a word."""
    found, command = [], False
    for part in node.values:
        if isinstance(part, ast.Constant):
            start = re.search(r"(dit-video [a-z]|hf download|tfds )[^`]*$", part.value)
            command = bool(start) or (command and "`" not in part.value and "\n" not in part.value)
        elif command and A_PATH.search(ast.unparse(part)):
            found.append(ast.unparse(part))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_are_printed_can_be_typed(path):
    strings = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.JoinedStr))
    assert [word for node in strings for word in unquoted(node)] == []


PLANTED = {
    "wrong type": ("num_steps=20", 'num_steps="20"'),
    "misspelt argument": ("guidance=Guidance(scale=2.0)", "guidance=Guidance(scal=2.0)"),
    "wrong component": ("condition=ClassCondition(num_classes=10, drop_rate=0.1)", "condition=Guidance()"),
    "misspelt attribute": ("decay=Decay.COSINE", "decay=Decay.COSIN"),
}


@pytest.fixture(scope="module")
def planted_report(tmp_path_factory) -> str:
    """What the type checker says of copies of an experiment with one mistake each; one run for all."""
    text = (ROOT / "experiments/quickstart.py").read_text()
    folder = tmp_path_factory.mktemp("planted")
    for name, (right, wrong) in PLANTED.items():
        assert right in text, f"{name}: the experiment no longer says {right}"
        (folder / f"{name.replace(' ', '_')}.py").write_text(text.replace(right, wrong))
    config = folder / "pyproject.toml"
    config.write_text(f'[tool.pyrefly]\nproject-includes = ["."]\nsearch-path = ["{ROOT}"]\npython-version = "3.11"\n')
    command = [str(BIN / "pyrefly"), "check", "--config", str(config), "--python-interpreter-path", sys.executable]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


@pytest.mark.parametrize("mistake", PLANTED)
def test_the_type_checker_finds_a_planted_mistake(planted_report, mistake):
    assert f"{mistake.replace(' ', '_')}.py" in planted_report, planted_report


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_has_one_subject_and_a_readable_size(path):
    words = set(path.stem.split("_")) | {part for part in path.relative_to(ROOT).parts[:-1]}
    assert not words & NO_SUBJECT, f"{path} is named after no subject"
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES, f"{path} has {len(text.splitlines())} lines: it has two subjects"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_is_and_nothing_is_left_undone(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    for unfinished in ("TODO", "FIXME", "XXX", "NotImplementedError", "except Exception", "except:"):
        assert unfinished not in text, f"{path} has {unfinished}"
    assert not re.search(r"\bcfg\b", text), f"{path}: cfg is classifier-free guidance; a configuration is a config"


def test_nothing_lies_outside_of_a_room():
    loose = {p.stem for p in (ROOT / "dit_video").glob("*.py")}
    assert loose <= LOOSE, f"these belong into a room: {loose - LOOSE}"


# Classes that only their own room may ask for, and networks as others publish them.
ASKED_AT_HOME = {
    "Task", "Denoise", "Autoencode", "Condition", "ClassCondition", "TextCondition", "EmbeddedText", "FirstFrame",
    "KnownFrames", "AsChannels", "LevelZero",
}  # fmt: skip
HOMES = ("tasks", "published")


def asked_for(tree: ast.AST) -> list[tuple[int, str]]:
    """Lines that ask a value for one of these classes, or whether it has an attribute of a task or condition."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                names = [n.id for n in ast.walk(kinds) if isinstance(n, ast.Name)]
            case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[value, *_]):
                asked = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
                asked |= {n.attr for n in ast.walk(value) if isinstance(n, ast.Attribute)}
                names = ["Task" for name in asked if name in ("task", "condition")]
            case ast.MatchClass(cls=ast.Name(id=name)):
                names = [name]
            case ast.Compare(left=left, comparators=sides):
                calls = [n for n in (left, *sides) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
                if any(call.func.id == "type" for call in calls):
                    names = [n.id for side in (left, *sides) for n in ast.walk(side) if isinstance(n, ast.Name)]
        found += [(node.lineno, name) for name in names if name in ASKED_AT_HOME]
    return found


@pytest.mark.parametrize(
    "question",
    [
        "isinstance(x, Denoise)", "issubclass(k, Task | int)", "type(x) is Autoencode", "getattr(run.task, 'known', 0)",
        "hasattr(condition, 'num_classes')", "match x:\n case TextCondition(): pass",
    ],
)  # fmt: skip
def test_the_question_for_a_class_is_found(question):
    assert asked_for(ast.parse(question))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_task_and_a_condition_answer_for_themselves(path):
    """No class of theirs is asked for away from home: a new one would have to be added there."""
    if path.is_relative_to(ROOT / "dit_video") and path.relative_to(ROOT / "dit_video").parts[0] not in HOMES:
        assert not asked_for(ast.parse(path.read_text())), path


def test_tests_mirror_the_package():
    rooms = {p.name for p in (ROOT / "dit_video").iterdir() if p.is_dir() and not p.name.startswith("_")}
    tested = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and not p.name.startswith("_")}
    assert rooms <= tested, f"no tests for {rooms - tested}"


def test_importing_the_package_starts_nothing():
    code = "import sys, dit_video; print(dit_video.__version__, 'jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    version, started = result.stdout.split()
    assert started == "False"
    assert version in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_has_two_commands_and_ci_runs_the_second():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"<!-- command: (\w+) -->\n```\n(.*?)\n```", readme, re.DOTALL)
    assert [name for name, _ in blocks] == ["demo", "test"]
    for _, text in blocks:
        assert len(text.splitlines()) == 1, "each command is one line"
    assert "command: test" in (ROOT / ".ci/run").read_text()


def test_every_dependency_has_a_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    listed = lines[start + 1 : lines.index("]", start)]
    for before, line in itertools.pairwise(listed):
        if line.strip().startswith('"'):
            assert before.strip().startswith("#"), f"{line.strip()} has no reason beside it"


def test_tested_versions_are_pinned_for_every_dependency():
    pinned = {
        re.split(r"[=<>]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    named = {n.lower().replace("_", "-") for n in re.findall(r'^    "([\w-]+)', section, re.MULTILINE)}
    named |= {n.lower().replace("_", "-") for n in re.findall(r"^    '([\w-]+)", section, re.MULTILINE)}
    missing = named - pinned - {"dit-video"}
    assert not missing, f"constraints.txt lacks {missing}"
