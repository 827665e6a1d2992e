"""The files that TensorBoard reads, written as their store allows.

A file is a row of records as TFRecord frames them, each a message `Event` of Protocol Buffers; the numbers of its
fields are those of event.proto and summary.proto in tensorboard/compat/proto. tensorboardX would write them too. Its
thread ends at the first failure of the store, and ten events later whoever adds one waits for it for ever; and to
import it is to import PyTorch where that is installed.
"""

import io
import re
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dit_video.training.patient_files import PICTURES_LIMIT, PatientFiles

# Event
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = 1, 2, 3, 5, 7
# SessionLog, and its status that begins a session
STATUS, START = 1, 1
# Summary, its values and their images
VALUE, TAG, SIMPLE_VALUE, IMAGE = 1, 1, 2, 4
HEIGHT, WIDTH, COLORSPACE, ENCODED_IMAGE = 1, 2, 3, 4
RGB = 3


class Board:
    """One file of events; every session of a run has its own."""

    def __init__(self, files: PatientFiles, folder: Path, *, session: int, start: int):
        """What other files in `folder` say of the steps after `start` is no longer shown."""
        # TensorBoard knows its files by this name; two sessions may begin in one second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{session}"
        self._file = files.file(folder / name, limit=PICTURES_LIMIT)
        self._add(_field(FILE_VERSION, b"brain.Event:2"))
        if start:
            self._add(_field(STEP, start + 1) + _field(SESSION_LOG, _field(STATUS, START)))

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        # Tags without spaces, as other writers of such files spell them.
        tags = [re.sub(r"[^-/\w.]", "_", f"{prefix}/{name}") for name in values]
        shown = [_value(tag, _single(SIMPLE_VALUE, value)) for tag, value in zip(tags, values.values())]
        self._add(_field(STEP, step) + _field(SUMMARY, b"".join(shown)))

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
        """As GIF, which TensorBoard plays."""
        gif = io.BytesIO()
        frames = [Image.fromarray(frame) for frame in video]
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
        sizes = _field(HEIGHT, video.shape[1]) + _field(WIDTH, video.shape[2]) + _field(COLORSPACE, RGB)
        image = _field(IMAGE, sizes + _field(ENCODED_IMAGE, gif.getvalue()))
        self._add(_field(STEP, step) + _field(SUMMARY, _value(name, image)))

    def _add(self, event: bytes) -> None:
        """A record of TFRecord: length, its checksum, content, its checksum."""
        content = _key(WALL_TIME, 1) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(content))
        self._file.append(length + _checksum(length) + content + _checksum(content))


def _value(tag: str, content: bytes) -> bytes:
    return _field(VALUE, _field(TAG, tag.encode()) + content)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _field(number: int, value: int | bytes) -> bytes:
    """A whole number that is not negative, or a string, bytes or a message."""
    if isinstance(value, int):
        return _key(number, 0) + _varint(value)
    return _key(number, 2) + _varint(len(value)) + value


def _single(number: int, value: float) -> bytes:
    return _key(number, 5) + np.float32(value).tobytes()


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the eighth says that more follow."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _checksums_of_bytes() -> tuple[int, ...]:
    """Of CRC-32C (RFC 3720, B.4), reflected."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _checksums_of_bytes()


def _checksum(content: bytes) -> bytes:
    """CRC-32C as TFRecord has it: rotated, and a constant added, so that no checksum is the one of another."""
    found = 0xFFFFFFFF
    for byte in content:
        found = found >> 8 ^ _TABLE[(found ^ byte) & 255]
    found ^= 0xFFFFFFFF
    return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF)
