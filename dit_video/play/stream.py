"""Stream of frames that answers to actions, and the clips that it can begin with."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from dit_video.data.dataset import Data
from dit_video.data.record import Examples, Record, Split
from dit_video.data.signals import ACTION, Actions
from dit_video.data.transforms import ClipTransform, usable
from dit_video.video.actions import ActionSpace
from dit_video.worlds.environment import CORRIDOR, Environment, open_environment

# Frames that a stream begins with, and the action that does nothing, as worlds call it.
NUM_KNOWN, NOOP = 4, "noop"


@runtime_checkable
class Stream(Protocol):
    """What is played: `run.world.World`, or whatever goes forward as it does."""

    @property
    def num_steps(self) -> int: ...

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None: ...

    @property
    def guidance(self) -> float: ...

    @guidance.setter
    def guidance(self, guidance: float) -> None: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def fps(self) -> float: ...

    @property
    def frames_per_step(self) -> int: ...

    def reset(self, frames: np.ndarray, actions: np.ndarray | None = None, *, seed: int = 0) -> None: ...

    def step(self, action: Any) -> UInt8[np.ndarray, "s H W 3"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Known frames that a stream begins with.

    Attributes:
        name: of the clip or picture.
        frames: [T H W 3].
        actions: what led to each; None where it is not known.
        episode: seed and actions from which the true world comes to the last of them; None where there is none.
    """

    name: str
    frames: UInt8[np.ndarray, "T H W 3"]
    actions: np.ndarray | None = None
    episode: tuple[int, np.ndarray] | None = None


class Starts:
    """The held-out clips of a run's data, as beginnings; training clips where it has no others.

    Attributes:
        actions: that the data are of.
    """

    def __init__(self, data: Data, *, frames_per_step: int):
        source = data.source
        info = source.info()
        split = Split.HELD_OUT if info.num_records.get(Split.HELD_OUT) else Split.TRAIN
        self._clips = dataclasses.replace(data.clips, num_frames=_num_known(data.clips.num_frames, frames_per_step))
        self._examples: Examples = usable(source.open(split), self._clips)
        self.actions = _action_space(data, info.actions)
        self._about = _recorded(source)

    def __len__(self) -> int:
        return len(self._examples)

    def at(self, number: int) -> Start:
        """The beginning of clip `number`: from its second frame on, where it has so many: there actions are known."""
        record = self._examples[number % len(self)]
        first = min(1, (record.num_frames or 0) - self._clips.num_frames)
        clip = self._clips.at(record, max(0, first), np.random.default_rng(0))
        if clip.video is None:
            raise ValueError("config.data.source: has latents alone, and a world begins with frames: name a video set")
        episode = None
        if record.actions is not None and (seed := self._seed(record.key)) is not None:
            episode = seed, record.actions[1 : clip.start + self._clips.num_frames]
        return Start(name=record.key, frames=clip.video, actions=clip.actions, episode=episode)

    def true_world(self) -> Environment | None:
        """The world that the set was recorded from, where it is here; None where it is not, or was not recorded."""
        if not self._about:
            return None
        options = self._about["environment_options"]
        if self._about["environment"] == CORRIDOR:
            from dit_video.worlds.corridor import Corridor

            return Corridor(**options)
        try:
            return open_environment(self._about["environment"])
        except ValueError:
            return None

    @property
    def repeat(self) -> int:
        """Steps of the true world for each frame."""
        return int(self._about.get("repeat", 1))

    def _seed(self, key: str) -> int | None:
        return self._about.get("episodes", {}).get(key, {}).get("seed")


def of_picture(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Start:
    """A beginning with one picture, scaled and cropped to the size of the stream."""
    record = Record(key="picture", video=picture[None], num_frames=1, fps=1.0)
    clip = ClipTransform(num_frames=1, size=size).at(record, 0, np.random.default_rng(0))
    assert clip.video is not None
    return Start(name="picture", frames=clip.video)


def _num_known(num_frames: int, frames_per_step: int) -> int:
    """1 + s k frames, about NUM_KNOWN, and fewer than a clip has."""
    most = min(NUM_KNOWN, num_frames - 1)
    return 1 + max(0, most - 1) // frames_per_step * frames_per_step


def _action_space(data: Data, of_source: ActionSpace | None) -> ActionSpace:
    if of_source is not None:
        return of_source
    signal = data.signals.get(ACTION)
    if isinstance(signal, Actions):
        return signal.space
    raise ValueError(f"config.data.signals has no {ACTION!r}: this run is no world; train one on a set with actions")


def _recorded(source: Any) -> Mapping[str, Any]:
    """Settings of the recording that a set is; empty of any other."""
    try:
        settings = source.manifest().settings
    except AttributeError:
        return {}
    return settings if settings.get("made_by") == "record" else {}
