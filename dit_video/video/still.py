"""Still pictures read as videos are: upright, RGB of 8 bits, over black where they are transparent."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dit_video.video.pictures import VideoError, check_size


def read_still(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a picture.

    Raises:
        VideoError: the file is no picture that can be read, or larger than a frame may be.
    """
    try:
        with Image.open(path) as image:
            check_size(image.height, image.width, "it has")
            return np.asarray(_plain(ImageOps.exif_transpose(image)))
    except VideoError:
        raise
    # Of damaged pictures Pillow raises these; of vast ones an error of its own.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"not a picture that can be read ({error})") from error


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
