"""Captions as byte tokens: UTF-8 in uint8 arrays of one length.

Bytes need no vocabulary, and so nothing to download. Zero bytes fill up; a caption begins with a byte that UTF-8 never
has, so that also an empty one, which is how "no text" is said, has a token to attend to.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

BEGIN = 0xFF


def encode_captions(captions: Sequence[str], num_bytes: int) -> UInt8[np.ndarray, "B L"]:
    """Encodes captions as bytes: a start byte, UTF-8 and zero padding, `num_bytes` in all.

    What is longer is cut between two characters; see `room_for`.
    """
    rows = np.zeros((len(captions), num_bytes), np.uint8)
    rows[:, 0] = BEGIN
    for row, caption in zip(rows, captions):
        # The byte that fills up is no character of a caption.
        whole = _utf8(caption.replace("\0", ""))
        whole_characters = whole[: room_for(num_bytes)].decode(errors="ignore").encode()
        row[1 : 1 + len(whole_characters)] = np.frombuffer(whole_characters, np.uint8)
    return rows


def length_in_bytes(caption: str) -> int:
    """Bytes of a caption in UTF-8."""
    return len(_utf8(caption))


def _utf8(caption: str) -> bytes:
    # What was read from a damaged table may hold halves of characters.
    return caption.encode(errors="replace")


def room_for(num_bytes: int) -> int:
    """Bytes of text that fit into an array of `num_bytes`."""
    return num_bytes - 1


def length_histogram(lengths: Int[np.ndarray, "n"]) -> list[tuple[int, int, int]]:
    """How many captions have how many bytes: (least, most, count), in bins whose ends double from 16 on.

    Blank captions have a bin of their own, (0, 0, count); bins beyond the longest caption are left out.
    """
    ends = [0, 16]
    while ends[-1] < lengths.max(initial=0):
        ends.append(2 * ends[-1])
    counts = np.bincount(np.searchsorted(ends, lengths), minlength=len(ends)).tolist()
    return list(zip([0, *(end + 1 for end in ends[:-1])], ends, counts))
