import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_video.storage.retrying_files import RetryingFiles
from dit_video.training.curves import FILE, plot_record
from dit_video.training.tracker import METRICS_FILE


def read(path: Path) -> np.ndarray:
    """Grey levels of a picture, 255 for white."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def ink(picture: np.ndarray) -> int:
    return int((picture < 250).sum())


def draw(folder: Path) -> Path:
    """The picture of the record in a folder."""
    files, path = RetryingFiles(print), folder / FILE
    plot_record(files.file(folder / METRICS_FILE), files.file(path))
    return path


def write(folder: Path, lines: list[dict]) -> None:
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("num_steps", [3, 150], ids=["raw", "smoothed"])
def test_every_quantity_is_drawn(tmp_path, num_steps):
    steps = [{"step": s, "loss": 1 / s, "count/t_0.00_0.25": 3} for s in range(1, num_steps + 1)]
    write(tmp_path, steps)
    path = draw(tmp_path)
    only_loss = read(path)
    assert ink(only_loss) > 500
    more = [
        {"step": 3, "evaluation": "held-out error", "x_0_error": 0.5, "psnr": 20.0},
        {"step": 3, "rates": {"clips_per_second": 10.0}},
        {"step": 3, "evaluation": "samples"},
        {"step": 3, "evaluation": "fvd", "fvd": 300.0},
    ]
    write(tmp_path, steps + more)
    draw(tmp_path)
    everything = read(path)
    assert len(everything) > len(only_loss), "a fifth quantity starts a second row"
    assert ink(everything) > 3 * ink(only_loss)


def test_an_empty_record_draws_an_empty_picture(tmp_path):
    assert ink(read(draw(tmp_path))) == 0
