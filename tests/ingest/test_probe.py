"""Laws of what is stored of a file: as it is where it is fit, else encoded, even and no larger than asked for."""

import dataclasses
import errno
import os
import signal
from pathlib import Path

import pytest
from sample_videos import waves, write

from dit_video.ingest import decoding_process, probe, tables
from dit_video.ingest.decoding_process import _answer, _ending, at_once
from dit_video.ingest.probe import _even, _is_storable, storable
from dit_video.video.decode import decode
from dit_video.video.encode import encode_mp4
from dit_video.video.pictures import VideoError
from dit_video.video.survey import survey


@pytest.mark.parametrize(
    ("size", "max_size", "expected"),
    [
        ((32, 48), None, (32, 48)),
        ((31, 49), None, (32, 48)),
        ((1, 1), None, (2, 2)),
        ((100, 200), 50, (50, 100)),
        ((200, 100), 50, (100, 50)),
        ((100, 200), 100, (100, 200)),
        ((100, 200), 300, (100, 200)),
        ((1000, 3), 2, (666, 2)),
    ],
)
def test_sides_are_even_and_the_short_one_no_longer_than_asked_for(size, max_size, expected):
    assert _even(size, max_size) == expected


def test_limits_and_quality_are_what_they_are_said_to_be():
    assert (probe.CRF, probe.PRESET) == (16, "veryfast")
    assert (probe._LARGEST_COPY, probe._LARGEST_RECORD) == (64 * 1024**2, 1024**3)
    assert decoding_process.MAX_PROCESS_BYTES == 4 * 1024**3
    assert (decoding_process.MAX_SECONDS, decoding_process.MAX_SECONDS_PER_MIB) == (600, 60)
    assert (tables.MAX_BYTES, tables.MAX_CELL) == (1024**3, 128 * 1024)


def test_only_a_plain_whole_even_h264_is_stored_as_it_is(tmp_path, monkeypatch):
    path, target = tmp_path / "a.mp4", tmp_path / "out.mp4"
    path.write_bytes(encode_mp4(waves(0), 10.0))
    found = survey(path)
    assert _is_storable(path, found, None)
    for another in (
        {"timed": False},
        {"frames": found.positions},
        {"kinds": (dataclasses.replace(found.kinds[0], interlaced=True),)},
        {"coding": ("matroska,webm", "h264", "yuv420p")},
        {"coding": (found.coding[0], "hevc", "yuv420p")},
        {"coding": (found.coding[0], "h264", "yuv444p")},
    ):
        assert not _is_storable(path, dataclasses.replace(found, **another), None)
    assert [_is_storable(path, found, max_size) for max_size in (31, 32, 33)] == [False, True, True]
    facts = storable(path, target, 32)
    assert not target.exists()
    assert facts == {
        "frames": 12, "fps": 10.0, "width": 48, "height": 32, "left_out": 0, "doubled": 0, "notes": ""
    }  # fmt: skip
    monkeypatch.setattr(probe, "_LARGEST_COPY", path.stat().st_size)
    assert _is_storable(path, found, None)
    monkeypatch.setattr(probe, "_LARGEST_COPY", path.stat().st_size - 1)
    assert not _is_storable(path, found, None)
    facts = storable(path, target, 16)
    assert (facts["height"], facts["width"]) == decode(target.read_bytes())[0].shape[1:3] == (16, 24)
    monkeypatch.setattr(probe, "_LARGEST_RECORD", target.stat().st_size)
    storable(path, target, 16)
    monkeypatch.setattr(probe, "_LARGEST_RECORD", target.stat().st_size - 1)
    with pytest.raises(VideoError, match=r"too long for one record \(0 MiB as mp4\); cut it"):
        storable(path, target, 16)


def test_frames_of_another_codec_are_encoded_at_their_rate(tmp_path):
    write(tmp_path / "a.mkv", waves(0), codec="mpeg4", pixels="yuv420p", fps=12)
    facts = storable(tmp_path / "a.mkv", tmp_path / "out.mp4", None)
    assert decode((tmp_path / "out.mp4").read_bytes())[1] == facts["fps"] == 12.0


def test_the_ending_of_a_process_is_a_reason(tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    os.truncate(path, (3 << 20) - 1)
    assert _ending(-signal.SIGXCPU, str(path), 7) == (
        "takes more than 127 s of processor time to decode, the budget of its size (7 s, and 60 s for each MiB)"
    )
    assert _ending(-signal.SIGABRT, str(path), 7) == "it crashes the decoder (SIGABRT)"
    assert _ending(3, str(path), 7) == "the decoder ended with exit code 3"
    assert _ending(0, str(path), 7) == "the decoder ended with exit code 0"


def raising(error: BaseException):
    def function(path: Path) -> dict:
        raise error

    return function


def test_errors_of_a_file_are_reasons_and_a_full_disk_is_none():
    def answer(error: BaseException) -> dict:
        return _answer(raising(error), [Path("a")], 5 << 20)

    assert answer(VideoError("too long")) == {"refused": "too long"}
    assert answer(MemoryError()) == {"refused": "takes more than 5 MiB to decode"}
    assert answer(OSError(errno.EACCES, "no entry")) == {"refused": "cannot be read: no entry"}
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert answer(OSError(number, "full")) == {"failed": [number, "full"]}
    with pytest.raises(ZeroDivisionError):
        answer(ZeroDivisionError())


def test_as_many_files_as_asked_for_are_worked_on_at_once_or_one_per_core():
    assert [at_once(number) for number in (1, 3, 64)] == [1, 3, 64]
    assert at_once(None) == (os.cpu_count() or 1)
