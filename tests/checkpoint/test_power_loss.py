"""What outlasts a power loss: a disk is replayed of which only what was synced is there, cut at every call.

The calls of Python on files are recorded (`os`), those that TensorStore makes itself are not: its files are synced by
us as well, so that a step is whole by what is recorded alone.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.listener import SaveListener
from dit_video.config.atomic import new_folder, write_file
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.step import TrainState


@dataclasses.dataclass
class Disk:
    """What of the files below a folder would outlast a power loss: synced contents, and synced names of synced folders.

    A folder that is renamed takes along what is durable of it; its new name is durable once the folder above is synced.
    """

    top: Path
    contents: dict[int, bytes] = dataclasses.field(default_factory=dict)
    names: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    states: list[tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=list)

    def synced(self, descriptor: int) -> None:
        """Takes in a call of fsync."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        number = os.fstat(descriptor).st_ino
        if path.is_dir():
            self.names[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[number] = path.read_bytes()
        self.cut(f"fsync {path.name}")

    def cut(self, after: str) -> None:
        """Keeps what a power loss would leave now."""
        self.states.append((after, dict(self._files(self.top.stat().st_ino, ""))))

    def _files(self, folder: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        for name, number in self.names.get(folder, {}).items():
            if number in self.names or (number not in self.contents and self._is_folder(number)):
                yield from self._files(number, f"{prefix}{name}/")
            else:
                yield f"{prefix}{name}", self.contents.get(number, b"")

    def _is_folder(self, number: int) -> bool:
        return any(path.stat().st_ino == number for path in self.top.rglob("*") if path.is_dir())


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Disk:
    """A folder whose syncs and changes are recorded."""
    (tmp_path / "run").mkdir()
    recorded = Disk(tmp_path / "run")
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(recorded.top)):
            recorded.synced(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        call = getattr(os, name)

        def recording(*arguments, _call=call, _name=name, **more):
            result = _call(*arguments, **more)
            recorded.cut(f"{_name} {arguments[0]}")
            return result

        monkeypatch.setattr(os, name, recording)
    return recorded


def laid_out(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_file_is_there_as_it_was_or_as_it_is(disk):
    write_file(disk.top / "a", b"one")
    began = len(disk.states)
    write_file(disk.top / "a", b"two" * 1000)
    left = [files.get("a") for _, files in disk.states[began:]]
    assert set(left) == {b"one", b"two" * 1000}
    assert left[-1] == b"two" * 1000


def test_a_folder_is_there_whole_or_not_at_all(disk):
    with new_folder(disk.top / "set") as folder:
        (folder / "inner").mkdir()
        for name in ("a", "inner/b"):
            (folder / name).write_bytes(name.encode())
    whole = {"set/a": b"a", "set/inner/b": b"inner/b"}
    for _, files in disk.states:
        assert {name: x for name, x in files.items() if name.startswith("set/")} in ({}, whole)
    assert {name: x for name, x in disk.states[-1][1].items() if name.startswith("set/")} == whole


def state_of(step: int) -> TrainState:
    value = {"w": jnp.full((4, 3), float(step))}
    return TrainState(step=jnp.int32(step), params=value, ema=value, opt_state=value)


def test_a_step_that_is_there_is_whole(disk):
    with Checkpoints(disk.top, experiment={"seed": 1}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), next_batch=step)
            checkpoints.wait()
    whole = {str(p.relative_to(disk.top)): p.read_bytes() for p in disk.top.rglob("*") if p.is_file()}
    for after, files in disk.states:
        for step in (1, 2):
            below = f"checkpoints/{step}/"
            left = {name: content for name, content in files.items() if name.startswith(below)}
            assert left in ({}, {name: x for name, x in whole.items() if name.startswith(below)}), after
    assert {name for name in disk.states[-1][1] if name.startswith("checkpoints/")} == whole.keys()


@pytest.mark.slow  # opens a run for each cut
def test_at_every_cut_the_last_step_that_counted_is_read_and_its_record_is_there(disk, tmp_path):
    counted: list[int] = []
    at: list[tuple[int, int]] = []
    with RetryingFiles(print) as record:
        metrics = record.file(disk.top / "metrics.jsonl")

        def count(line) -> None:
            counted.append(line["step"])
            at.append((len(disk.states), line["step"]))

        listener = SaveListener(record=count, prepare=record.sync)
        with Checkpoints(disk.top, experiment={"seed": 1}, listener=listener) as checkpoints:
            for step in (1, 2, 3, 4):
                metrics.append(b'{"step": %d}\n' % step)
                checkpoints.save(step, state_of(step), next_batch=step)
                checkpoints.wait()
            assert checkpoints.steps == [2, 3, 4]  # an older one was deleted
    assert counted == [1, 2, 3, 4]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    opened: dict[frozenset[tuple[str, bytes]], int | None] = {}
    for number, (after, files) in enumerate(disk.states):
        least = max((step for when, step in at if when <= number), default=0)
        key = frozenset(files.items())
        if key not in opened:
            folder = laid_out(files, tmp_path / f"cut{len(opened)}")
            folder.mkdir(exist_ok=True)
            with Checkpoints(folder) as checkpoints:
                saved = checkpoints.resume(shapes, lambda message: None)
            opened[key] = None if saved is None else saved.step
            if saved is not None:
                np.testing.assert_array_equal(saved.state.params["w"], np.full((4, 3), float(saved.step)))
                assert (folder / "metrics.jsonl").read_text().splitlines()[saved.step - 1 :][:1] != []
        assert (opened[key] or 0) >= least, f"after {after}: step {opened[key]}, and {least} counted"
    assert opened[frozenset(disk.states[-1][1].items())] == 4
    assert len(opened) > 8
