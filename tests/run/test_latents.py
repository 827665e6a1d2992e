"""How much of its videos a latent cache holds, and what is said where that is little."""

import numpy as np
from toys import Videos

from dit_video.data.transforms import ClipTransform, usable
from dit_video.run.latents import Cut, share_note

TRANSFORM = ClipTransform(num_frames=5, size=(8, 8), stride=2)


def test_clips_apart_are_as_many_as_fit_beside_each_other():
    videos = Videos([np.zeros((length, 8, 8, 3), np.uint8) for length in (8, 9, 17, 18, 40)])
    cut = Cut.of(usable(videos, TRANSFORM), TRANSFORM, 3)
    np.testing.assert_array_equal(cut.num_apart, [1, 1, 2, 4])
    assert cut.num_clips == 1 + 3 + 3 + 3


def test_less_than_half_is_said_with_the_remedy():
    videos = usable(Videos([np.zeros((100, 8, 8, 3), np.uint8)] * 2), TRANSFORM)
    assert share_note([Cut.of(videos, TRANSFORM, 11)]) is None
    note = share_note([Cut.of(videos, TRANSFORM, 1)])
    assert note == "2 clips are 9% of what their videos have; --clips_per_video=11 encodes all of it"
    assert share_note([Cut.of(videos, TRANSFORM, 5), Cut.of(videos, TRANSFORM, 6)]) is None
