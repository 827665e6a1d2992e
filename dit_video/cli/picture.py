"""--image of `dit-video sample`: clips that continue a picture."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from dit_video.data.batch import Batch
from dit_video.data.record import Record
from dit_video.data.transforms import ClipTransform
from dit_video.tasks.task import Task


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
        with Image.open(path) as image:
            pixels = np.asarray(_plain(ImageOps.exif_transpose(image)))
    except (UnidentifiedImageError, IsADirectoryError) as error:
        raise ValueError(f"--image={path}: not a picture that can be read ({error})") from error
    record = Record(key=str(path), video=pixels[None], num_frames=1, fps=1.0)
    clip = ClipTransform(num_frames=1, size=size).at(record, 0, np.random.default_rng(0))
    assert clip.video is not None, "a record with pixels gives a clip with pixels"
    return clip.video[None]


def _plain(image: Image.Image) -> Image.Image:
    """RGB of 8 bits, over black, as videos are made plain."""
    if image.mode.startswith("I;16"):
        # Pillow would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
