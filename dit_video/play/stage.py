"""Stage of play: a stream with the true world beside it, and what was done since it began. For one caller at a time."""

import dataclasses
import hashlib
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.play.recording import Recording
from dit_video.play.stream import NOOP, Start, Stream
from dit_video.video.actions import ActionSpace
from dit_video.video.encode import stream_mp4
from dit_video.worlds.environment import Environment

# Frames that are kept on disk for a recording: an hour at 30 a second.
_MOST_KEPT = 108_000
_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A frame that is shown.

    Attributes:
        number: of the frame, from 1; 0 is the last that is known.
        dream: of the stream.
        true: of the true world, where there is one beside it.
        seconds: that it took to make.
    """

    number: int
    dream: UInt8[np.ndarray, "H W 3"]
    true: UInt8[np.ndarray, "h w 3"] | None
    seconds: float


class Stage:
    """A stream that is played.

    Attributes:
        actions: that it takes.
    """

    def __init__(self, stream: Stream, actions: ActionSpace, *, true_world: Environment | None = None, repeat: int = 1):
        """Args:
        true_world: which the same actions go to, `repeat` times each.
        """
        self.stream, self.actions = stream, actions
        self._true_world, self._repeat = true_world, repeat
        self._start: Start | None = None
        # Without a name, and gone with this value.
        self._frames = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._frames.close)

    @property
    def noop(self) -> Any:
        """The action of who presses nothing: the one of that name, else none that is known."""
        if not self.actions.continuous and NOOP in self.actions.names:
            return self.actions.names.index(NOOP)
        return self.actions.unknown(1)[0]

    def reset(self, start: Start, *, seed: int = 0) -> Shown:
        """Begins anew; what was recorded is forgotten."""
        began = time.perf_counter()
        self.stream.reset(start.frames, start.actions, seed=seed)
        self._start, self._seed, self._number = start, seed, 0
        self._acted: list[Any] = []
        self._settings: list[tuple[int, float]] = []
        self._sha256 = hashlib.sha256()
        self._frames.seek(0)
        self._frames.truncate()
        self._true = self._true_of(start)
        return Shown(number=0, dream=start.frames[-1], true=self._true, seconds=time.perf_counter() - began)

    def step(self, action: Any) -> list[Shown]:
        """The frames after an action, mostly one.

        Raises:
            ValueError: nothing has begun, or it is no action.
        """
        if self._start is None:
            raise ValueError("Stage.step: nothing has begun; call reset with a beginning")
        began = time.perf_counter()
        frames = self.stream.step(action)
        seconds = (time.perf_counter() - began) / len(frames)
        self._acted.append(action)
        self._settings.append((self.stream.num_steps, self.stream.guidance))
        self._sha256.update(frames.tobytes())
        shown = []
        for frame in frames:
            self._number += 1
            if self._number <= _MOST_KEPT:
                self._frames.write(frame.tobytes())
            self._step_true_world(action)
            shown.append(Shown(number=self._number, dream=frame, true=self._true, seconds=seconds))
        return shown

    def recording(self) -> Recording:
        """What was done since the beginning."""
        if self._start is None:
            raise ValueError("Stage.recording: nothing has begun")
        empty = self.actions.unknown(0)
        return Recording(
            start=self._start,
            seed=self._seed,
            actions=np.array(self._acted, empty.dtype).reshape(len(self._acted), *empty.shape[1:]),
            num_steps=np.array([steps for steps, _ in self._settings], np.int32),
            guidance=np.array([guidance for _, guidance in self._settings], np.float64),
            digest=self._sha256.hexdigest(),
            fps=float(self.stream.fps),
        )

    def save(self, folder: Path) -> Path:
        """Writes what was played as the next play_NNNN.mp4 in a folder, and as .npz, from which it is replayed.

        Raises:
            ValueError: nothing was played yet.
        """
        recording = self.recording()
        if not len(recording.actions):
            raise ValueError("nothing has been played yet")
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.stem[5:]) for path in folder.glob("play_[0-9][0-9][0-9][0-9].npz")), default=0)
        path = folder / f"play_{number:04d}.mp4"
        stream_mp4(path, self._played(recording.start), recording.fps)
        recording.write(path.with_suffix(".npz"))
        return path

    def _played(self, start: Start) -> Iterator[np.ndarray]:
        yield start.frames
        shape = start.frames.shape[1:]
        size = int(np.prod(shape))
        self._frames.seek(0)
        while content := self._frames.read(size * _AT_ONCE):
            yield np.frombuffer(content, np.uint8).reshape(-1, *shape)
        self._frames.seek(0, 2)

    def _true_of(self, start: Start) -> np.ndarray | None:
        self._true_ended = start.episode is None
        if self._true_world is None or start.episode is None:
            return None
        seed, actions = start.episode
        shown = self._true_world.reset(seed)
        for action in actions:
            for _ in range(self._repeat):
                shown = self._true_world.step(action)
        return shown.frame

    def _step_true_world(self, action: Any) -> None:
        unknown = np.array_equal(action, self.actions.unknown(1)[0], equal_nan=self.actions.continuous)
        if self._true_world is None or self._true_ended or unknown:
            return
        for _ in range(self._repeat):
            shown = self._true_world.step(action)
            self._true = shown.frame
            if shown.ended:
                self._true_ended = True
                return
