"""Laws of tools/mutate.py: which mutants there are, and that tests are asked about each."""

from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="the extra `mutation` is not installed")

from tools import mutate

SOURCE = '''"""A file to be mutated."""
from __future__ import annotations
import functools

__all__ = ["larger"]

@functools.lru_cache(maxsize=3)
def larger(x: "int | float" = 1, *, y: tuple[int, ...] = ()) -> "int | float":
    """Returns 1 + 1."""
    if x > 5:
        raise ValueError(f"x={x - 1}: must be at most {5 + 0}")
    return 1 + x
'''
TESTS = """
import pytest
from dit_video.toy.file import larger

def test_it_adds_one():
    assert larger(4) == 5
    assert larger() == 2
    with pytest.raises(ValueError):
        larger(6)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """One of a single room, of a single file."""
    for path, text in {
        "dit_video/__init__.py": "",
        "dit_video/toy/__init__.py": "",
        "dit_video/toy/file.py": SOURCE,
        "tests/toy/test_file.py": TESTS,
        "tests/toy/test_another.py": "def test_nothing(): pass",
        "pyproject.toml": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "COPIED", ("dit_video", "tests", "pyproject.toml"))
    monkeypatch.setattr(mutate, "ROOMS", {"toy": mutate.Room(("dit_video/toy/*.py",), ("tests/toy/test_*.py",))})
    return tmp_path


def test_every_room_has_sources_and_tests():
    for name, room in mutate.ROOMS.items():
        assert mutate.sources([name])
        assert mutate.tests_of("", room)
    with pytest.raises(ValueError, match="attic: must be one of diffusion, "):
        mutate.sources(["attic"])


def test_tests_of_a_file_are_those_near_it_in_its_room_or_all(repository):
    (repository / "tests/toy/test_far.py").write_text("import dit_video.toy.file_of_another")
    (repository / "tests/toy/test_by_import.py").write_text("import dit_video.toy.file")
    (repository / "tests/toy/test_from.py").write_text("from dit_video.toy import another, file")
    near, lonely = (mutate.tests_of(f"dit_video/toy/{name}.py", mutate.ROOMS["toy"]) for name in ("file", "lonely"))
    assert [Path(test).stem for test in near] == ["test_file", "test_by_import", "test_from"]
    assert {Path(test).stem for test in lonely} == {*(Path(test).stem for test in near), "test_another", "test_far"}


def test_annotations_decorators_messages_and_strings_have_no_mutants(repository):
    mutants = mutate.sample(["dit_video/toy/file.py"], 0, seed=0)
    # The default; the comparison, its sign and its bound; what is added, and the sign.
    assert [mutant.start_pos for mutant in mutants] == [(8, 30), (10, 7), (10, 9), (10, 11), (12, 11), (12, 13)]


def test_a_sample_is_decided_by_its_seed_and_takes_a_place_once():
    files = list(mutate.sources(["nn"]))
    chosen = mutate.sample(files, 5, seed=1)
    assert chosen == mutate.sample(files, 5, seed=1) != mutate.sample(files, 5, seed=2)
    assert len({(m.module_path, m.start_pos, m.end_pos) for m in chosen}) == 5


def test_mutants_die_by_tests_and_survive_without(repository, tmp_path_factory):
    """The tests do not say what is made of 5."""
    file, tests = "dit_video/toy/file.py", ["tests/toy/test_file.py"]
    judge = mutate.Judge(tmp_path_factory.mktemp("judge"), {file: tests})
    higher, lower = next(mutants for (start, _), mutants in mutate.places(file).items() if start == (10, 11))
    died, survived, sign = (judge(mutant, tests) for mutant in (higher, lower, mutate.sample([file], 0, seed=0)[-1]))
    assert [mutate._ending(result) for result in (died, survived, sign)] == ["killed", "survived", "killed"]
    assert mutate._first_failure(sign) == "tests/toy/test_file.py::test_it_adds_one"
    assert "-    if x > 5:\n+    if x > 4:" in survived.diff
    assert (repository / file).read_text() == SOURCE


def test_tests_that_fail_anyway_judge_nothing(repository, tmp_path_factory):
    (repository / "tests/toy/test_another.py").write_text("def test_something(): assert False")
    with pytest.raises(ValueError, match="fails without any mutant"):
        mutate.Judge(tmp_path_factory.mktemp("judge"), {"dit_video/toy/file.py": ["tests/toy/test_another.py"]})
