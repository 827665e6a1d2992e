import io
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute] (of protobuf)
from tensorboardX.record_writer import masked_crc32c

from dit_video.progress import Terminal
from dit_video.storage.retrying_files import RetryingFiles
from dit_video.tasks.media import Video
from dit_video.training.tracker import METRICS_FILE, Tracker, read_record
from dit_video.training.trackers import TensorBoard, TrackedRun
from dit_video.video.decode import read_video

RATES = {"clips_per_second": 10.0, "data_wait_share": 0.25, "flops_per_second": 1e9}


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def start(tmp_path, output):
    """Opens trackers and closes them when the test is over."""
    opened = []

    def open_at(step: int) -> Tracker:
        console = Terminal(file=output)
        files = RetryingFiles(console.print)
        boards = [TensorBoard().open(TrackedRun(tmp_path, "run", {}, step), files, console.print)]
        opened.append(Tracker(tmp_path, files, start=step, num_steps=6, console=console, trackers=boards))
        return opened[-1]

    yield open_at
    for tracker in opened:
        tracker.close()


def steps(first: int, last: int) -> list[tuple[int, dict[str, float]]]:
    return [(step, {"loss": 1 / step}) for step in range(first, last + 1)]


def test_every_step_is_a_line_with_its_own_values(start, tmp_path):
    tracker = start(0)
    tracker.steps(steps(1, 3))
    tracker.evaluation(3, "held-out error", {"x_0_error": 0.5})
    tracker.rates(3, 1 / 3, RATES)
    assert list(read_record(tmp_path)) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
        {"step": 3, "evaluation": "held-out error", "x_0_error": 0.5},
        {"step": 3, "rates": RATES},
    ]


def test_going_on_keeps_what_was_before_and_drops_what_will_be_written_again(start, tmp_path):
    tracker = start(0)
    tracker.steps(steps(1, 5))
    tracker.evaluation(4, "samples", {})
    tracker.close()
    again = start(4)
    # At once: the process may be killed before it writes its first line.
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4, 4]
    assert again.has_evaluation(4, "samples")
    assert not again.has_evaluation(4, "held-out error")
    again.steps(steps(5, 6))
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4, 4, 5, 6]


def test_going_back_forgets_what_was_after_and_leaves_boards_of_before(start, tmp_path):
    tracker = start(0)
    tracker.steps(steps(1, 5))
    tracker.rewind(3)
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3]
    assert tracker.past(2) == [{"loss": 1 / 2}, {"loss": 1 / 3}]
    tracker.steps(steps(4, 6))
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 5, 15])
def test_a_half_written_last_line_is_left_out_and_written_over(start, tmp_path, cut):
    tracker = start(0)
    tracker.steps(steps(1, 3))
    tracker.close()
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[:-cut])
    assert [line["step"] for line in read_record(tmp_path)] == ([1, 2, 3] if cut == 1 else [1, 2])
    again = start(2)
    again.steps(steps(3, 4))
    assert [line["step"] for line in read_record(tmp_path)] == [1, 2, 3, 4]


def test_a_folder_without_a_record_has_no_lines(tmp_path):
    assert list(read_record(tmp_path)) == []


def test_media_are_videos_one_can_play(start, tmp_path):
    video = np.zeros((5, 32, 48, 3), np.uint8)
    video[:, :, 24:] = 255
    start(0).media(12, "samples", Video(video, 8.0))
    path = tmp_path / "samples" / "step_0000012_samples.mp4"
    decoded, fps = read_video(path)
    assert (decoded.shape, fps) == (video.shape, 8.0)
    np.testing.assert_allclose(decoded.astype(int), video, atol=12)


def test_cards_are_json(start, tmp_path):
    start(0).card(3, "fvd", {"value": 12.5, "protocol": {"num_clips": 16}})
    assert json.loads((tmp_path / "cards" / "step_0000003_fvd.json").read_text())["value"] == 12.5


def test_the_console_shows_loss_speed_and_waiting(start, output):
    tracker = start(0)
    tracker.rates(3, 0.25, RATES | {"tokens_per_second": 640.0, "mfu": 0.4})
    tracker.evaluation(3, "held-out error", {"x_0_error": 0.5})
    shown = output.getvalue()
    for part in ("step 3/6", "loss 0.2500", "10.0 clips/s", "640 tokens/s", "MFU 40.0%", "waiting for data 25%", "ETA"):
        assert part in shown
    assert "held-out error  x_0_error 0.5" in shown


def test_an_evaluation_is_one_plain_line(start, output):
    tracker = start(0)
    tracker.steps(steps(1, 2))
    tracker.evaluation(2, "fvd", {"fvd": 123.456, "kernel[0]": 0.5})
    assert "step 2  fvd  fvd 123.5  kernel[0] 0.5\n" in output.getvalue()


def board_events(path: Path) -> list[Event]:
    """Those in a file of TensorBoard, a TFRecord: length, checksum, content, checksum."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        content = data[12 : 12 + length]
        checksums = [struct.unpack_from("<I", data, at)[0] for at in (8, 12 + length)]
        assert checksums == [masked_crc32c(data[:8]), masked_crc32c(content)]
        events.append(Event.FromString(content))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_scalars_and_pictures(start, tmp_path):
    start(0).steps(steps(1, 2))
    tracker = start(2)
    tracker.evaluation(2, "held-out error", {"psnr": 20.0})
    tracker.media(200, "samples", Video(np.zeros((2, 8, 16, 3), np.uint8), 8.0))
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.suffix)
    assert [path.name.startswith("events.out.tfevents.") for path in (first, second)] == [True, True]
    version, scalars = board_events(first)
    assert version.file_version == "brain.Event:2"
    assert [(scalars.step, v.tag, v.simple_value) for v in scalars.summary.value] == [(2, "train/loss", 0.5)]
    _, begin, evaluation, picture = board_events(second)
    # What the first session says of later steps is not shown.
    assert (begin.step, begin.session_log.status) == (3, SessionLog.START)
    assert [v.tag for v in evaluation.summary.value] == ["held-out_error/psnr"]
    (shown,) = picture.summary.value
    assert (picture.step, shown.tag) == (200, "samples")
    assert (shown.image.height, shown.image.width, shown.image.colorspace) == (8, 16, 3)
    assert shown.image.encoded_image_string.startswith(b"GIF89a")
    assert time.time() - 60 < picture.wall_time <= time.time()


def test_steps_whose_lines_were_in_the_memory_of_a_run_that_was_killed_are_named(start, output, tmp_path):
    tracker = start(0)
    tracker.steps(steps(1, 2))
    tracker.steps(steps(5, 6))
    assert "no line" not in output.getvalue()
    start(6)
    assert f"{METRICS_FILE}: 2 steps from 3 to 4 have no line" in output.getvalue()
