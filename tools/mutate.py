"""Mutation run: one token of the source is changed at a time; do the tests of its room notice?

    pip install -e '.[dev,mutation]'
    python -m tools.mutate diffusion --num_mutants 20 --seed 0
    python -m tools.mutate dit_video/vae/losses.py --num_mutants 0

Mutants are those of Cosmic Ray (https://cosmic-ray.readthedocs.io): comparisons and arithmetic exchanged, numbers moved
by one, `not` added or taken away, `and` for `or`, True for False, loops that never run, exceptions that are not caught.
Sampled are places, each as likely as any other, and of the mutants of a place one; so a `+` that could become six
other operators counts as much as a constant. 0 mutants means one of every place.

Left out, for no test should care or every test does: docstrings, `__all__`, `from __future__` and other strings (never
touched), annotations, what a `raise` says, decorators and their arguments (without `jit` or `cache` only time changes),
bit operators put for arithmetic (floats have none), `is` put for `==`, and mutants that do not compile.

A mutant is judged by the test files near its file: of those of its room, the ones that are named after it or import it,
and all of them where there are none. So what a test further away would notice counts as survived.

Tests run on a copy in a temporary folder, quick files first, until the first fails. The copy keeps what XLA compiled
for the tests before, so that only what a mutant changes is compiled again. A mutant that takes four times as long as
its tests do without it, and two minutes, counts as killed by time. Shapes and types are checked in the package of the
mutant alone: in all of them that takes half of a short run. Nothing is written in the repository.

Prints survivors as differences, then a table. docs/mutation.md keeps what was found.
"""

import argparse
import ast
import contextlib
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkResult
from rich.console import Console
from rich.table import Table

from dit_video.progress import counted

ROOT = Path(__file__).parents[1]
COPIED = ("dit_video", "experiments", "tests", "tools", "pyproject.toml")


class Room(NamedTuple):
    """Patterns of paths from the root of the repository."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


# Of another place of a room this is all that changes. Left out are the tests of processes, which take minutes.
ROOMS = {
    "diffusion": Room(("dit_video/diffusion/*.py",), ("tests/diffusion/test_*.py",)),
    "nn": Room(("dit_video/nn/*.py",), ("tests/nn/test_*.py",)),
    "vae": Room(("dit_video/vae/*.py",), ("tests/vae/test_*.py",)),
    "dit": Room(("dit_video/dit/*.py",), ("tests/dit/test_*.py",)),
    "evaluation": Room(("dit_video/evaluation/*.py",), ("tests/evaluation/test_[!p]*.py",)),
    "data": Room(("dit_video/data/*.py",), ("tests/data/test_*.py",)),
    "ingest": Room(("dit_video/ingest/*.py",), ("tests/ingest/test_*.py",)),
    "video": Room(("dit_video/video/*.py",), ("tests/video/test_*.py", "tests/ingest/test_hostile_files.py")),
    "preflight": Room(("dit_video/run/preflight.py",), ("tests/run/test_preflight.py",)),
    "digest": Room(("dit_video/weights/digest.py",), ("tests/weights/test_digest.py",)),
    "checkpoint": Room(("dit_video/checkpoint/*.py",), ("tests/checkpoint/test_*.py",)),
    "config": Room(("dit_video/config/*.py",), ("tests/config/test_*.py",)),
    "tasks": Room(("dit_video/tasks/*.py",), ("tests/tasks/test_*.py",)),
}

_ARITHMETIC = "(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)"
_COMPARISON = "(Eq|NotEq|Lt|LtE|Gt|GtE)"
_OPERATORS = re.compile(
    f"core/(ReplaceBinaryOperator_{_ARITHMETIC}_{_ARITHMETIC}|ReplaceComparisonOperator_{_COMPARISON}_{_COMPARISON}"
    "|ReplaceComparisonOperator_(In_NotIn|NotIn_In|Is_IsNot|IsNot_Is)|ReplaceUnaryOperator_Delete_(USub|Not)|AddNot"
    "|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue"
    "|ReplaceContinueWithBreak|ZeroIterationForLoop|ExceptionReplacer|NumberReplacer)"
)

Position = tuple[int, int]  # line from 1, column from 0

# tests/conftest.py keeps nothing that is compiled; here it is kept for the next mutant.
_PLUGIN = """
import jax

def pytest_configure(config):
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", {folder!r})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
"""


def sources(where: Sequence[str]) -> dict[str, Room]:
    """Files of rooms, or those that are named, each with its room.

    Raises:
        ValueError: there is no such room, or the file is in none; names those that there are.
    """
    files = {file: room for room in reversed(ROOMS.values()) for file in _matching(room.sources)}
    found = {}
    for name in where:
        if name not in ROOMS and name not in files:
            raise ValueError(f"{name}: must be one of {', '.join(ROOMS)}, or a file of one of them")
        found |= dict.fromkeys(_matching(ROOMS[name].sources), ROOMS[name]) if name in ROOMS else {name: files[name]}
    return found


def tests_of(file: str, room: Room) -> list[str]:
    """Test files near a file: those of its room that are named after it, then those that import it; all if none are."""
    package, _, stem = file.removesuffix(".py").replace("/", ".").rpartition(".")
    imports = re.compile(rf"\b{re.escape(package)}\.{stem}\b|from {re.escape(package)} import .*\b{stem}\b")
    tests = _matching(room.tests)
    named = [test for test in tests if Path(test).name.startswith(f"test_{stem}")]
    importing = [test for test in tests if imports.search((ROOT / test).read_text(encoding="utf-8"))]
    return list(dict.fromkeys(named + importing)) or tests


def places(file: str) -> dict[tuple[Position, Position], list[MutationSpec]]:
    """Every place of a file that has mutants, from start to end, and these."""
    code = (ROOT / file).read_text(encoding="utf-8")
    left_out, tree = list(_left_out(ast.parse(code))), get_ast(code)
    found = defaultdict(list)
    for name in filter(_OPERATORS.fullmatch, operator_names()):
        operator = get_operator(name)()
        positions = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= start and end <= last for first, last in left_out):
                found[start, end].append(MutationSpec(Path(file), name, occurrence, start, end))
    return dict(sorted(found.items()))


def sample(files: Sequence[str], num_mutants: int, seed: int) -> list[MutationSpec]:
    """One mutant of each of `num_mutants` places, of all where it is 0; the same for the same seed and source."""
    rng = random.Random(seed)
    candidates = [mutants for file in files for mutants in places(file).values()]
    rng.shuffle(candidates)
    chosen = []
    for mutants in candidates:
        if num_mutants and len(chosen) == num_mutants:
            break
        rng.shuffle(mutants)
        chosen += [mutant for mutant in mutants if _compiles(mutant)][:1]
    return sorted(chosen, key=lambda mutant: (mutant.module_path, mutant.start_pos))


class Judge:
    """Runs tests on a copy of the repository; `tests` are those of each file.

    Raises:
        ValueError: one of them fails without any mutant.
    """

    def __init__(self, folder: Path, tests: Mapping[str, Sequence[str]]):
        self._copy, self._compiled, plugins = folder / "copy", folder / "compiled", folder / "plugins"
        self._copy.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self._copy / name)
        plugins.mkdir()
        (plugins / "keep_compiled.py").write_text(_PLUGIN.format(folder=str(self._compiled)), encoding="utf-8")
        self._path = f"{self._copy}{os.pathsep}{plugins}"
        command = _command(sorted({test for near in tests.values() for test in near}), tests)
        self._seconds = self._seconds_without_mutant(command, folder / "report.xml")

    def __call__(self, mutant: MutationSpec, tests: Sequence[str]) -> WorkResult:
        """What these tests say of a mutant; the output of those that ran out of time is "timeout"."""
        limit = 4 * sum(self._seconds[test] for test in tests) + 120
        command = _command(sorted(tests, key=self._seconds.__getitem__), [str(mutant.module_path)])
        with contextlib.chdir(self._copy), _environment(PYTHONPATH=self._path):
            result = mutate_and_test([mutant], shlex.join(command), timeout=limit)
        if result.output == "timeout":
            # It may have been writing there.
            shutil.rmtree(self._compiled, ignore_errors=True)
        return result

    def _seconds_without_mutant(self, command: Sequence[str], report: Path) -> dict[str, float]:
        """By test file. Leaves byte code behind, which mutants must not write: half of a short run is making it."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPATH"] = self._path
        command = [*command, f"--junitxml={report}", "-o", "junit_duration_report=total"]
        result = subprocess.run(command, cwd=self._copy, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise ValueError(f"{shlex.join(command)}: fails without any mutant\n{result.stdout}{result.stderr}")
        seconds: dict[str, float] = defaultdict(float)
        for case in ElementTree.parse(report).iter("testcase"):
            seconds[case.attrib["classname"].replace(".", "/") + ".py"] += float(case.attrib["time"])
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="+", help=f"files, or some of {', '.join(ROOMS)}")
    parser.add_argument("--num_mutants", type=int, default=20, help="places that are sampled; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    arguments = parser.parse_args()
    files = sources(arguments.where)
    mutants = sample(list(files), arguments.num_mutants, arguments.seed)
    console, began, counts = Console(soft_wrap=True), time.monotonic(), defaultdict(Counter)
    tests = {file: tests_of(file, files[file]) for file in {str(mutant.module_path) for mutant in mutants}}
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder), tests)
        for mutant in counted(mutants, "mutants", total=len(mutants), unit="mutants"):
            file = str(mutant.module_path)
            result = judge(mutant, tests[file])
            ending = _ending(result)
            counts[file][ending] += 1
            console.print(f"{file}:{mutant.start_pos[0]} {ending} {_first_failure(result)}", markup=False)
            if ending == "survived":
                console.print(result.diff, markup=False)
    console.print(_table(counts))
    minutes = (time.monotonic() - began) / 60
    console.print(f"{' '.join(arguments.where)}, seed {arguments.seed}: {minutes:.1f} minutes", highlight=False)


def _command(tests: Sequence[str], files: Iterable[str]) -> list[str]:
    """Runs tests, with types checked in the packages of these files."""
    packages = sorted({str(Path(file).parent).replace("/", ".") for file in files})
    checked = f"--jaxtyping-packages={','.join(packages)},beartype.beartype"
    return [sys.executable, "-m", "pytest", "-x", "-p", "keep_compiled", checked, *tests]


def _table(counts: dict[str, Counter]) -> Table:
    endings = ("killed", "survived", "timeout")
    table = Table("file", "mutants", *endings)
    for file, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        table.add_row(file, *map(str, (found.total(), *(found[ending] for ending in endings))))
    return table


def _ending(result: WorkResult) -> str:
    if result.test_outcome is TestOutcome.INCOMPETENT:
        raise RuntimeError(f"no test ran: {result.output}")
    if result.test_outcome is TestOutcome.SURVIVED:
        return "survived"
    return "timeout" if result.output == "timeout" else "killed"


def _first_failure(result: WorkResult) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", result.output or "", re.MULTILINE)
    return found[1] if found else ""


def _matching(patterns: Sequence[str]) -> list[str]:
    found = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    return [path.relative_to(ROOT).as_posix() for path in found]


def _left_out(tree: ast.Module) -> Iterator[tuple[Position, Position]]:
    """Where annotations, decorators and raised exceptions stand."""
    for node in ast.walk(tree):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        parts += getattr(node, "decorator_list", [])
        for part in [node] if isinstance(node, ast.Raise) else parts:
            if isinstance(part, ast.expr | ast.Raise):
                yield (part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)


def _compiles(mutant: MutationSpec) -> bool:
    """And is another program: a star before arguments is no product, and parentheses more are no change."""
    code = (ROOT / mutant.module_path).read_text(encoding="utf-8")
    mutated = mutate_code(code, get_operator(mutant.operator_name)(), mutant.occurrence)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            compile(mutated, str(mutant.module_path), "exec")
        except (SyntaxError, SyntaxWarning):
            return False
    before, after = ast.parse(code), ast.parse(mutated)
    if "BinaryOperator" in mutant.operator_name:
        return _arithmetic(before) != _arithmetic(after)
    return ast.dump(before) != ast.dump(after)


def _arithmetic(tree: ast.Module) -> Counter[type]:
    """How often each operator stands between two operands."""
    return Counter(type(node) for node in ast.walk(tree) if isinstance(node, ast.operator))


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


if __name__ == "__main__":
    main()
