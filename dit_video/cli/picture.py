"""--image of `dit-video sample`: clips that continue a picture."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dit_video.data.batch import Batch
from dit_video.data.record import Record
from dit_video.data.transforms import ClipTransform
from dit_video.tasks.task import Task
from dit_video.video.pictures import VideoError
from dit_video.video.still import read_still


def continuing(path: Path | None, task: Task, rows: list[Batch], size: tuple[int, int]) -> tuple[Task, list[Batch]]:
    """The task that continues the picture, and the rows of the grid with it as the first frame of each.

    As they are where there is no picture.

    Raises:
        ValueError: the run needs one and there is none, or the other way round, or the file is no picture.
    """
    if path is None:
        if task.paired:
            raise ValueError("--image=None: this run makes clips that continue a first frame; name a picture of it")
        return task, rows
    continues = task.continuing_images()
    if continues is None:
        raise ValueError(
            f"--image={path}: this run continues no first frame, nor was its network trained with a noise level for "
            "each frame; leave it out"
        )
    frame = read_frame(path, size)
    return continues, [row._replace(video=frame) for row in rows]


def read_frame(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "1 1 H W 3"]:
    """A picture, upright and over black, scaled and cropped to `size` = (height, width) as clips of training are.

    Raises:
        ValueError: the file is no picture.
    """
    try:
        pixels = read_still(path)
    except VideoError as error:
        raise ValueError(f"--image={path}: {error}") from error
    record = Record(key=str(path), video=pixels[None], num_frames=1, fps=1.0)
    clip = ClipTransform(num_frames=1, size=size).at(record, 0, np.random.default_rng(0))
    assert clip.video is not None, "a record with pixels gives a clip with pixels"
    return clip.video[None]
