"""TensorBoard event files: scalars and GIFs, written without a thread that a failing disk could end.

tensorboardX has a writer too. Its thread ends at the first failure of the store, and ten events later whoever adds one
waits for it for ever; so only its messages are used here.
"""

import io
import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute] (of protobuf)
from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute] (of protobuf)
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from dit_video.storage.retrying_files import PICTURES_LIMIT, RetryingFiles
from dit_video.video.encode import write_gif

_NUMBER = itertools.count()


class TensorBoardFiles:
    """TensorBoard event files; a session of a run writes one, and another each time that it goes back."""

    def __init__(self, files: RetryingFiles, folder: Path, *, start: int):
        self._files, self._folder = files, folder
        self.rewind(start)

    def rewind(self, step: int) -> None:
        """Goes on at `step`: what older files in the folder have of later steps is hidden."""
        # TensorBoard knows its files by this name; two sessions may begin in one second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBER)}"
        self._file = self._files.file(self._folder / name, limit=PICTURES_LIMIT)
        self._add(Event(file_version="brain.Event:2"))
        if step:
            self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        summary = Summary()
        for name, value in values.items():
            summary.value.extend(scalar(f"{prefix}/{name}", value).value)
        self._add(Event(step=step, summary=summary))

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
        """Adds a video as a GIF, which TensorBoard plays."""
        gif = io.BytesIO()
        write_gif(gif, video, fps)
        image = Summary.Image(
            height=video.shape[1], width=video.shape[2], colorspace=3, encoded_image_string=gif.getvalue()
        )
        self._add(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        pass  # who made `files` waits until they are written

    def _add(self, event: Event) -> None:
        """Appends one TFRecord: length, its checksum, content, its checksum."""
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.append(length + checksums[0] + content + checksums[1])
