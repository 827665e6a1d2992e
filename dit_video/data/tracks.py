"""Tracks: what accompanies each frame of a video in a set, its action and the pose of the camera, kept without loss."""

import hashlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dit_video.config.json_file import check_kinds
from dit_video.video.actions import ActionSpace
from dit_video.video.actions import from_json as actions_from_json


class Tracks(NamedTuple):
    """What accompanies the frames of a video, a row for each: [T] or [T A], and [T P]."""

    actions: np.ndarray
    poses: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class TrackSpace:
    """What accompanies every frame of a set.

    Attributes:
        actions: of which each frame has one.
        pose: names of the numbers of a camera's pose; none where poses are not known.
    """

    actions: ActionSpace
    pose: tuple[str, ...] = ()

    @property
    def fields(self) -> list[str]:
        """Fields of a record."""
        return ["actions", *(["poses"] if self.pose else [])]

    def to_bytes(self, tracks: Tracks) -> dict[str, bytes]:
        """The fields of a record: the numbers as they are, little-endian, 32 bits each.

        Raises:
            ValueError: they are not of this space.
        """
        found = {"actions": self.actions.checked(tracks.actions).astype(self._kind("actions")[0]).tobytes()}
        if self.pose:
            if tracks.poses is None or tracks.poses.shape != (len(tracks.actions), len(self.pose)):
                raise ValueError(f"poses: must be the numbers {', '.join(self.pose)} of each frame")
            found["poses"] = tracks.poses.astype("<f4").tobytes()
        return found

    def sha256(self, tracks: Tracks) -> str:
        digest = hashlib.sha256()
        for name, content in self.to_bytes(tracks).items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def read(self, fields: Mapping[str, Any], num_frames: int) -> Tracks:
        """What `to_bytes` wrote.

        Raises:
            KeyError, ValueError: it is not of so many frames.
        """
        found = {}
        for name in self.fields:
            dtype, shape = self._kind(name)
            found[name] = np.frombuffer(fields[name], dtype).reshape(num_frames, *shape).astype(dtype[1:])
        return Tracks(**found)

    def to_json(self) -> dict[str, Any]:
        return {"actions": self.actions.to_json(), "pose": list(self.pose)}

    def _kind(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of the numbers of a frame."""
        if name == "poses":
            return "<f4", (len(self.pose),)
        return ("<f4", (len(self.actions.names),)) if self.actions.continuous else ("<i4", ())


def from_json(content: Any) -> TrackSpace:
    """The space that `to_json` wrote.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(content, dict):
        raise ValueError(f"tracks={reprlib.repr(content)}: must be an object")
    check_kinds(content, {"actions": dict, "pose": list})
    if not all(isinstance(name, str) for name in content["pose"]):
        raise ValueError(f"tracks.pose={reprlib.repr(content['pose'])}: must be strings")
    return TrackSpace(actions=actions_from_json(content["actions"]), pose=tuple(content["pose"]))
