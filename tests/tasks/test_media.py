"""Media are files of the kind that their ending names, in small letters or capitals."""

import numpy as np
import pytest

from dit_video.tasks.media import Picture, Video

VIDEO = Video(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8), 10.0)
BEGINNINGS = {"mp4": (4, b"ftyp"), "gif": (0, b"GIF8"), "png": (1, b"PNG")}


@pytest.mark.parametrize("name", ["a.mp4", "a.MP4", "a.gif", "a.GIF", "a.png", "a.PNG"])
def test_the_ending_decides_the_kind_of_a_file(name, tmp_path):
    kind = name[2:].lower()
    made = Picture(VIDEO.frames[0]) if kind == "png" else VIDEO
    made.write(tmp_path / "new" / name)
    place, beginning = BEGINNINGS[kind]
    assert (tmp_path / "new" / name).read_bytes()[place:].startswith(beginning)
