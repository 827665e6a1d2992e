"""Recordings as arrays: a .npz of videos [N T H W 3], often with actions and captions, unpacked into clips."""

from pathlib import Path

import numpy as np

from dit_video.config.array_file import read_arrays
from dit_video.video.encode import encode_mp4

SUFFIX = ".npz"
ACTIONS = "{stem}_actions.npz"
"""Pattern of the files of actions that are written beside the videos."""

_VIDEOS, _ACTIONS, _CAPTIONS = ("video", "videos", "frames"), ("action", "actions"), ("caption", "captions")
# Arrays say no rate, unless there is one of this name; else it is that of the corridor and of most robots' sets.
_RATE, _FPS = "fps", 10.0
_MAX_BYTES = 8 << 30


def unpack(source: Path, folder: Path) -> Path:
    """Writes the videos of a .npz as 0000.mp4 and so on, with their actions and captions beside them.

    Args:
        folder: where a folder of the source's name is made.

    Raises:
        ValueError: it is damaged, or has no videos; says what it has.
    """
    try:
        arrays, there = read_arrays(source, {*_VIDEOS, *_ACTIONS, *_CAPTIONS, _RATE}, max_bytes=_MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    name = next((name for name in _VIDEOS if name in arrays), None)
    if name is None:
        raise ValueError(f"{source}: has no array {' or '.join(_VIDEOS)}, but {', '.join(there)}; rename it")
    videos = arrays[name]
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
        raise ValueError(f"{source}: {name} is {videos.dtype} of shape {videos.shape}, not uint8 [N T H W 3]")
    fps = float(arrays[_RATE]) if _RATE in arrays and arrays[_RATE].ndim == 0 else _FPS
    actions = next((arrays[name] for name in _ACTIONS if name in arrays), None)
    captions = next((arrays[name] for name in _CAPTIONS if name in arrays), None)
    for what, rows in (("actions", actions), ("captions", captions)):
        if rows is not None and len(rows) != len(videos):
            raise ValueError(f"{source}: {len(rows)} {what} of {len(videos)} videos: must be one of each")
    out = folder / source.stem
    out.mkdir(parents=True)
    for number, video in enumerate(videos):
        stem = f"{number:04d}"
        (out / f"{stem}.mp4").write_bytes(encode_mp4(video, fps))
        if actions is not None:
            np.savez(out / ACTIONS.replace("{stem}", stem), action=actions[number])
        if captions is not None:
            (out / f"{stem}.txt").write_text(str(captions[number]), encoding="utf-8")
    return out
