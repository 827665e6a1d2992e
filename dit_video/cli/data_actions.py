"""What `dit-video data inspect` says of the actions of a set."""

from typing import Any

import numpy as np

from dit_video.data.record import Split
from dit_video.data.sources import VideoSet
from dit_video.data.video_set import Manifest
from dit_video.video.actions import ActionSpace

# Videos of a split whose actions are read, spread over it.
_MOST_READ = 500


def actions_of(source: VideoSet, manifest: Manifest) -> dict[str, Any] | None:
    """As JSON: how many frames have each discrete action, or least, mean and greatest of each continuous number.

    Also the names of a camera's pose, and of how many videos of each split the actions were read. None of a set
    without actions.
    """
    if manifest.tracks is None:
        return None
    space = manifest.tracks.actions
    splits = {split: _read(source, manifest, split) for split in Split}
    return {
        **space.to_json(),
        "pose": list(manifest.tracks.pose),
        "videos_read": {str(split): len(rows) for split, rows in splits.items()},
        "frames": {str(split): _summary(space, rows) for split, rows in splits.items()},
    }


def action_lines(about: dict[str, Any] | None) -> list[str]:
    """The same in words."""
    if about is None:
        return []
    of = "numbers of an action, least, mean and greatest" if about["continuous"] else "frames of each action"
    lines = []
    for split, summary in about["frames"].items():
        if not summary:
            continue
        if about["continuous"]:
            shown = [f"{name} {low:.3g} {mean:.3g} {high:.3g}" for name, (low, mean, high) in summary.items()]
        else:
            total = max(1, sum(summary.values()))
            shown = [f"{name} {count} ({count / total:.1%})" for name, count in summary.items()]
        lines.append(f"{split}, {about['videos_read'][split]} videos: {of}: {', '.join(shown)}")
    return lines + [f"pose of the camera in each frame: {', '.join(about['pose'])}"] * bool(about["pose"])


def _read(source: VideoSet, manifest: Manifest, split: Split) -> list[np.ndarray]:
    total = len(manifest.stored(split))
    if not total:
        return []
    examples = source.open(split)
    positions = np.unique(np.linspace(0, total - 1, min(total, _MOST_READ)).astype(int)).tolist()
    rows = [examples[position].actions for position in positions]
    return [actions for actions in rows if actions is not None]


def _summary(space: ActionSpace, rows: list[np.ndarray]) -> dict[str, Any]:
    if not rows:
        return {}
    if not space.continuous:
        return space.counts(rows)
    values = np.concatenate(rows)
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        return {}
    numbers = np.stack([values.min(0), values.mean(0), values.max(0)], 1).tolist()
    return dict(zip(space.names, numbers))
