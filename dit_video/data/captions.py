"""Captions as byte tokens: UTF-8 in uint8 arrays of one length.

Bytes need no vocabulary, and so nothing to download. Zero bytes fill up; a caption begins with a byte that UTF-8 never
has, so that also an empty one, which is how "no text" is said, has a token to attend to.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

BEGIN = 0xFF


def encode_captions(captions: Sequence[str], num_bytes: int) -> UInt8[np.ndarray, "B L"]:
    """Encodes captions as bytes: a start byte, UTF-8 and zero padding, `num_bytes` in all.

    What is longer is cut between two characters; see `room_for`.
    """
    rows = np.zeros((len(captions), num_bytes), np.uint8)
    rows[:, 0] = BEGIN
    for row, caption in zip(rows, captions):
        # What was read from a damaged table may hold halves of characters, or the byte that fills up.
        whole = caption.replace("\0", "").encode(errors="replace")
        whole_characters = whole[: room_for(num_bytes)].decode(errors="ignore").encode()
        row[1 : 1 + len(whole_characters)] = np.frombuffer(whole_characters, np.uint8)
    return rows


def room_for(num_bytes: int) -> int:
    """Bytes of text that fit into an array of `num_bytes`."""
    return num_bytes - 1
