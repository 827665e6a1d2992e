"""Laws of inventories: what is counted is what clips are cut from, and what is not known is not read."""

import numpy as np
import pytest

from dit_video.data.inventory import lacking, take_inventory
from dit_video.data.record import NO_LABEL, Examples, Record
from dit_video.data.signals import CaptionBytes
from dit_video.data.transforms import ClipTransform


class Facts(Examples):
    """Records of which only facts are known; nobody may read one."""

    def __init__(self, num_frames, *, fps=None, labels=None, captions=None, reads_to_count=False):
        self._facts = num_frames, fps, labels, captions
        self.reads_to_count = reads_to_count

    def __len__(self) -> int:
        return len(self._facts[0])

    def __getitem__(self, index: int) -> Record:
        raise AssertionError("an inventory reads no record")

    @property
    def num_frames(self):
        if self.reads_to_count:
            raise AssertionError("counting would read every record")
        return np.array(self._facts[0])

    @property
    def fps(self):
        return None if self._facts[1] is None else np.array(self._facts[1], float)

    @property
    def labels(self):
        return None if self._facts[2] is None else np.array(self._facts[2])

    @property
    def captions(self):
        return self._facts[3]


TRANSFORM = ClipTransform(num_frames=5, size=(16, 16))


def test_records_long_enough_and_their_clips_are_counted():
    examples = Facts([4, 5, 7, 9], labels=[0, 1, NO_LABEL, 2], captions=["lost", "", "ab", "\u00e4\u00e4\u65e5"])
    held = take_inventory(examples, TRANSFORM, ("x", "y", "z"))
    starts = TRANSFORM.num_starts(np.array([4, 5, 7, 9]), None)
    assert (held.num_records, held.num_usable, held.num_clips) == (4, 3, int(starts.sum()))
    assert held.labelled.tolist() == [True, False, True]
    assert held.caption_bytes.tolist() == [0, 2, 7]
    assert held.captioned.tolist() == [False, True, True]
    assert held.class_names == ("x", "y", "z")


def test_the_rate_of_a_clip_decides_which_are_long_enough():
    slow = ClipTransform(num_frames=5, size=(16, 16), fps=10.0)
    held = take_inventory(Facts([9, 9, 10], fps=[10, 20, 20]), slow, ())
    assert held.num_usable == int((slow.num_starts(np.array([9, 9, 10]), np.array([10.0, 20, 20])) > 0).sum())
    assert held.num_usable < take_inventory(Facts([9, 90, 90], fps=[10, 20, 20]), slow, ()).num_usable + 1
    assert take_inventory(Facts([8], fps=[20]), slow, ()).num_usable == 0
    assert take_inventory(Facts([8], fps=[20]), TRANSFORM, ()).num_usable == 1


def test_what_only_reading_would_tell_is_unknown():
    held = take_inventory(Facts([4, 9], labels=[0, 1], captions=["a", ""], reads_to_count=True), TRANSFORM, ())
    assert (held.num_records, held.num_usable, held.num_clips) == (2, None, None)
    assert held.labelled.tolist() == [True, True]
    assert held.caption_bytes.tolist() == [1, 0]
    bare = take_inventory(Facts([4, 9]), TRANSFORM, ())
    assert (bare.labelled, bare.caption_bytes, bare.captioned) == (None, None, None)


def test_lacking_is_nothing_a_warning_or_an_error():
    assert lacking(None, "class", "give one") == lacking(np.ones(3, bool), "class", "give one") == []
    assert lacking(np.array([True, False, False]), "class", "give one") == [
        "2 of 3 training videos have no class, and are learnt as without condition"
    ]
    with pytest.raises(ValueError, match="none of the 2 training videos has a class; give one"):
        lacking(np.zeros(2, bool), "class", "give one")


def test_captions_that_are_cut_are_counted():
    held = take_inventory(Facts([9] * 4, captions=["", "abcd", "abcde", "abcdefg"]), TRANSFORM, ())
    assert CaptionBytes(num_bytes=5).check_data(held) == [
        "num_bytes=5 leaves room for 4: 2 of 4 captions are longer and are cut, the longest has 7; "
        "8 would hold them all"
    ]
    assert CaptionBytes(num_bytes=8).check_data(held) == []
    assert CaptionBytes(num_bytes=5).check_data(take_inventory(Facts([9]), TRANSFORM, ())) == []
