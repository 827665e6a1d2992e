"""The folder of checkpoints obeys the same laws in a file system and in a bucket."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dit_video.checkpoint.folder import BucketSteps, LocalSteps, Steps, steps_of
from dit_video.storage.failures import Vanished
from dit_video.storage.mirror import BucketRecord

PREFIX = "some/run/"


class Place(NamedTuple):
    """A place of checkpoints, what writes a file there, by its path in the run, and what lists all files."""

    steps: Steps
    put: Callable[[str, bytes], object]
    files: Callable[[], list[str]]
    half: str
    """What the name of a step ends with until it is complete."""

    def step(self, number: int, size: int = 10) -> None:
        """A complete step of three files and `size` bytes."""
        self.put(f"checkpoints/{number}/commit_success.txt", b"")
        self.put(f"checkpoints/{number}/params/d/1", b"x" * (size - 1))
        self.put(f"checkpoints/{number}/params/manifest", b"y")

    def half_step(self, number: int) -> None:
        self.put(f"checkpoints/{number}{self.half}/params/d/1", b"xyz")


@pytest.fixture(params=["file system", "bucket"])
def place(request, tmp_path) -> Place:
    if request.param == "bucket":
        bucket = request.getfixturevalue("bucket")
        bucket.put("bucket", f"{PREFIX}experiment.json", b"{}")
        BucketRecord("gs://bucket/some/run", tmp_path / "run")
        return Place(
            steps_of(tmp_path / "run"),
            lambda path, content: bucket.put("bucket", PREFIX + path, content),
            lambda: [name.removeprefix(PREFIX) for name in bucket.names(PREFIX)],
            "",
        )

    def put(path: str, content: bytes) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)

    put("experiment.json", b"{}")
    return Place(
        steps_of(tmp_path),
        put,
        lambda: sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()),
        ".orbax-checkpoint-tmp-17",
    )


def test_a_run_is_kept_where_its_folder_is_a_copy_of(place, tmp_path):
    local = isinstance(place.steps, LocalSteps)
    assert local != isinstance(place.steps, BucketSteps)
    assert str(place.steps.path) == (str(tmp_path / "checkpoints") if local else "gs://bucket/some/run/checkpoints")


def test_a_step_is_there_once_it_is_complete(place):
    assert not place.steps.exists()
    assert not place.steps.has(2)
    place.half_step(2)
    assert place.steps.exists()
    assert not place.steps.has(2)
    place.step(3)
    assert place.steps.has(3)
    assert not place.steps.has(30)


def test_complete_steps_are_listed_in_order_and_can_be_read(place):
    assert place.steps.complete() == []
    for number in (12, 2):
        place.step(number)
    place.half_step(7)
    assert place.steps.complete() == [2, 12]
    place.steps.read(12)
    with pytest.raises(FileNotFoundError):
        place.steps.read(3)


def test_half_written_steps_are_named_in_order(place):
    assert place.steps.unfinished() == place.steps.half_written(1) == []
    place.step(2)
    for number in (7, 1, 12):
        place.half_step(number)
    names = {number: f"{number}{place.half}" for number in (1, 7, 12)}
    assert place.steps.unfinished() == sorted(names.values())
    assert place.steps.half_written(1) == [names[1]]
    assert place.steps.half_written(7) == [names[7]]
    assert place.steps.half_written(2) == place.steps.half_written(3) == []


def test_bytes_of_a_step_are_those_of_all_its_files(place):
    place.step(1, size=10)
    place.step(2, size=1234)
    assert (place.steps.size(1), place.steps.size(2)) == (10, 1234)


def test_what_is_removed_is_gone_and_nothing_else(place):
    for number in (1, 2, 12):
        place.step(number)
    before = place.files()
    place.steps.remove("2")
    assert place.files() == [path for path in before if not path.startswith("checkpoints/2/")]
    # Of what is not there, nothing is left either.
    place.steps.remove("99")
    assert not place.steps.has(2)


def test_a_step_set_aside_is_whole_elsewhere_with_the_reason(place):
    assert place.steps.aside() == []
    place.step(5, size=20)
    where = place.steps.set_aside("5", "a bit flipped")
    assert where.endswith("/checkpoints_damaged/5")
    assert not place.steps.has(5)
    [aside] = place.steps.aside()
    assert (aside.folder, aside.bytes, aside.why) == (where, 20, "a bit flipped")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", aside.found)
    moved = [f"checkpoints_damaged/5/{path}" for path in ("commit_success.txt", "params/d/1", "params/manifest")]
    assert sorted(place.files()) == sorted([*moved, "checkpoints_damaged/5.json", "experiment.json"])


def test_steps_of_one_number_are_set_aside_beside_each_other(place):
    """The first under its own name, the second as number 2."""
    for round_number in (1, 2, 3):
        place.step(5, size=10 * round_number)
        place.steps.set_aside("5", f"reason {round_number}")
    found = [(Path(aside.folder).name, aside.bytes, aside.why) for aside in place.steps.aside()]
    assert found == [("5", 10, "reason 1"), ("5_2", 20, "reason 2"), ("5_3", 30, "reason 3")]


@pytest.mark.parametrize("note", [b"", b"{", b"\xff", b"[1]", b'{"why": 5, "found": "now"}'])
def test_a_damaged_note_is_none(place, note):
    place.step(5)
    where = place.steps.set_aside("5", "a bit flipped")
    place.put("checkpoints_damaged/5.json", note)
    assert [(aside.folder, aside.why, aside.found) for aside in place.steps.aside()] == [(where, None, None)]


def test_what_is_aside_without_a_note_has_no_reason(place):
    """A kill came between."""
    place.put("checkpoints_damaged/8/params/d/1", b"abc")
    place.put("checkpoints_damaged/3/params/d/1", b"ab")
    place.put("checkpoints_damaged/3.json", json.dumps({"why": "it was old"}).encode())
    found = [(Path(a.folder).name, a.bytes, a.why, a.found) for a in place.steps.aside()]
    assert found == [("3", 2, "it was old", None), ("8", 3, None, None)]


def test_a_folder_that_is_gone_is_not_taken_for_an_empty_one(tmp_path):
    steps = LocalSteps(tmp_path)
    with pytest.raises(Vanished, match="checkpoints is gone; look whether its file system is mounted"):
        steps.check()
    (tmp_path / "checkpoints").mkdir()
    steps.check()


def test_a_bucket_says_itself_that_it_does_not_answer(bucket):
    BucketSteps("gs://bucket/some/run").check()
    assert bucket.requests == []
