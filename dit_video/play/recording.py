"""Recordings of play: all that decides the frames, and their digest, so that a replay is compared bit for bit."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.config.array_file import read_arrays
from dit_video.play.stream import Start, Stream

_FORMAT = "dit_video.play 1"
_FIELDS = ("format", "name", "frames", "actions", "num_steps", "guidance", "seed", "digest", "fps")
_KNOWN_ACTIONS = "known_actions"
# A day of actions and the frames of a beginning take a hundredth of it.
_MAX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What was played from a beginning on.

    Attributes:
        actions: of each step, [n] or [n A]; -1 or NaN where none was known.
        num_steps, guidance: with which each frame was made, [n].
        digest: sha256 of all frames that were made.
    """

    start: Start
    seed: int
    actions: np.ndarray
    num_steps: np.ndarray
    guidance: np.ndarray
    digest: str
    fps: float

    def write(self, path: Path) -> None:
        known: dict[str, Any] = {} if self.start.actions is None else {_KNOWN_ACTIONS: self.start.actions}
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                format=np.array(_FORMAT),
                name=np.array(self.start.name),
                frames=self.start.frames,
                actions=self.actions,
                num_steps=self.num_steps,
                guidance=self.guidance,
                seed=np.array(self.seed),
                digest=np.array(self.digest),
                fps=np.array(self.fps),
                **known,
            )


def read_recording(path: Path) -> Recording:
    """The recording in a file.

    Raises:
        ValueError: it is none.
    """
    try:
        content, _ = read_arrays(path, {*_FIELDS, _KNOWN_ACTIONS}, max_bytes=_MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: no recording of dit-video play ({error})") from error
    missing = [name for name in _FIELDS if name not in content]
    if missing or str(content["format"]) != _FORMAT:
        raise ValueError(f"{path}: no recording of dit-video play: has no {', '.join(missing) or _FORMAT}")
    if not len(content["actions"]) == len(content["num_steps"]) == len(content["guidance"]):
        raise ValueError(f"{path}: has another number of actions than of steps")
    start = Start(name=str(content["name"]), frames=content["frames"], actions=content.get(_KNOWN_ACTIONS))
    return Recording(
        start=start,
        seed=int(content["seed"]),
        actions=content["actions"],
        num_steps=content["num_steps"],
        guidance=content["guidance"],
        digest=str(content["digest"]),
        fps=float(content["fps"]),
    )


class Replay:
    """Frames of a recording, made again.

    Attributes:
        digest: of those made so far.
    """

    def __init__(self, stream: Stream, recording: Recording):
        self._stream, self._recording, self._sha256 = stream, recording, hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()

    def __iter__(self) -> Iterator[np.ndarray]:
        """The known frames, then those of each step, [s H W 3]."""
        recording = self._recording
        yield recording.start.frames
        self._stream.reset(recording.start.frames, recording.start.actions, seed=recording.seed)
        for action, num_steps, guidance in zip(recording.actions, recording.num_steps, recording.guidance):
            self._stream.num_steps, self._stream.guidance = int(num_steps), float(guidance)
            frames = self._stream.step(action)
            self._sha256.update(frames.tobytes())
            yield frames
