"""Retrying files on failing storage: all data is written in the end, in order and once, or the loss is reported."""

from collections.abc import Callable

import pytest
from line_training import line_program, train_lines, without_rates

from dit_video.storage import retrying_files
from dit_video.storage.retrying_files import NotWritten, RetryingFiles
from dit_video.training.tracker import METRICS_FILE, read_record

LINES = [f"{number:0>999}\n".encode() for number in range(100)]
# In bytes; some of the lines fit.
SPARE = 1 << 14


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def files(messages, clock):
    return RetryingFiles(messages.append, clock=lambda: clock[0])


def test_what_a_full_store_does_not_take_is_written_later_in_order_and_once(store, files, messages):
    path = store.folder / "lines"
    file = files.file(path)
    file.append(LINES[0])
    with store.full(spare=SPARE):
        for line in LINES[1:]:
            file.append(line)
        assert not files.retry()
        # What is half-written is cut off: a kill must not leave a torn line in the midst.
        on_disk = path.read_bytes()
        assert on_disk == b"".join(LINES[: len(on_disk) // 1000])
        assert file.read() == b"".join(LINES)
        (warning,) = messages
        assert f"{path}: cannot be written: OSError: " in warning
        assert "Training goes on" in warning
    assert files.retry()
    assert path.read_bytes() == b"".join(LINES)
    assert messages[1:] == ["all that waited in memory is written now"]


def test_the_last_of_what_replaces_a_file_is_what_it_holds(store, files):
    path = store.folder / "folder" / "picture"
    file = files.file(path)
    file.replace(b"old")
    with store.full(spare=SPARE):
        for number in range(3):
            file.replace(bytes([number]) * (2 * SPARE))
        assert (path.read_bytes(), file.read()) == (b"old", bytes([2]) * (2 * SPARE))
        assert [entry.name for entry in path.parent.iterdir()] == ["picture"]
        file.append(b"more")
    assert files.retry()
    assert path.read_bytes() == bytes([2]) * (2 * SPARE) + b"more"


def test_it_is_tried_again_later_each_time(tmp_path, files, clock, messages):
    (tmp_path / "run").write_text("in the way")
    file = files.file(tmp_path / "run" / "lines")
    file.append(b"1")
    (tmp_path / "run").unlink()
    for wait in retrying_files.RETRY_PAUSES[:2]:
        file.append(b"2")
        assert not file.path.exists(), "nothing is tried before it is time"
        (tmp_path / "run").write_text("in the way")
        clock[0] += wait
        file.append(b"3")
        (tmp_path / "run").unlink()
    clock[0] += retrying_files.RETRY_PAUSES[2]
    file.append(b"4")
    assert file.path.read_bytes() == b"123234"
    assert len(messages) == 2


def test_a_file_that_can_be_written_does_not_wait_for_one_that_cannot(tmp_path, files):
    (tmp_path / "pictures").write_text("in the way")
    files.file(tmp_path / "pictures" / "one").replace(b"picture")
    files.file(tmp_path / "lines").append(b"line")
    assert (tmp_path / "lines").read_bytes() == b"line"


def test_a_folder_that_is_gone_is_not_made_anew(store, files, messages):
    """As under a mount point: what is written there would be hidden once the file system is back."""
    run, away = store.folder / "run", store.folder / "away"
    file = files.file(run / "lines")
    file.append(b"1")
    run.rename(away)
    for made_anew in (False, True):
        if made_anew:
            run.mkdir()
        file.append(b"2")
        files.file(run / "picture").replace(b"3")
        assert not (run / "lines").exists()
        assert "what was written there before is gone; look whether the file system is there" in messages[0]
    run.rmdir()
    away.rename(run)
    assert files.retry()
    assert ((run / "lines").read_bytes(), (run / "picture").read_bytes()) == (b"122", b"3")


def test_memory_is_bounded_and_what_is_dropped_is_counted(tmp_path, files, messages):
    (tmp_path / "run").write_text("in the way")
    lines, picture = (files.file(tmp_path / "run" / name, limit=limit) for name, limit in (("lines", 10), ("p", 5)))
    lines.append(b"1234")
    for _ in range(3):
        picture.replace(b"12")
    lines.append(b"567890")
    assert ["more waits in memory than may" in message for message in messages] == [False, True]
    (tmp_path / "run").unlink()
    with pytest.raises(NotWritten, match=r"run/p: 3 x dropped") as error:
        files.finish()
    assert "lines" not in str(error.value)
    assert lines.path.read_bytes() == b"1234567890"


def test_at_the_end_it_is_said_what_is_not_written(tmp_path, messages, monkeypatch):
    monkeypatch.setattr(retrying_files, "LAST_PAUSES", (0.0, 0.0))
    (tmp_path / "run").write_text("in the way")

    def write(warn: Callable[[str], None], error: BaseException | None) -> None:
        with RetryingFiles(warn) as files:
            files.file(tmp_path / "run" / "lines").append(b"1234")
            files.file(tmp_path / "run" / "lines").append(b"5")
            if error is not None:
                raise error

    with pytest.raises(NotWritten, match=r"run/lines: 5 bytes not written"):
        write(print, None)
    # What ended the run is what it ends with.
    with pytest.raises(KeyboardInterrupt):
        write(messages.append, KeyboardInterrupt())
    assert "5 bytes not written" in messages[-1]


@pytest.mark.slow
def test_a_run_whose_whole_folder_is_on_a_full_disk_goes_on_and_its_record_is_exact(tmp_path, store):
    num_steps, program = 150, line_program(150)
    straight = train_lines(program, tmp_path / "straight", num_steps=num_steps, log_every=5, save_every=50)
    full = store.full(spare=0)
    run = store.folder / "run"

    def before(index: int) -> None:
        if index == 20:
            full.__enter__()
        if index == 110:
            assert len(list(read_record(run))) < 110, "the store is not full"
            full.__exit__(None, None, None)

    disturbed = train_lines(program, run, num_steps=num_steps, log_every=5, save_every=50, before=before)
    assert without_rates(disturbed.record) == without_rates(straight.record)
    assert disturbed.saved[-1] == num_steps
    assert (run / METRICS_FILE).read_bytes().endswith(b"\n")
