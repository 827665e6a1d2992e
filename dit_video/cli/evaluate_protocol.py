"""`dit-video evaluate --protocol`: the settings of a published FVD in the place of options."""

import argparse

from dit_video.data.transforms import ClipTransform
from dit_video.evaluation.protocol import PUBLISHED, USUAL_NUM_FRAMES, PublishedProtocol, ResizeRule

_USUAL = {"num_frames": USUAL_NUM_FRAMES, "resize": ResizeRule.TF1.value, "stride": 1}
# What would make a value another than the published one.
_NOT_PUBLISHED = ("extractor", "clip_fps")


def published_of(arguments: argparse.Namespace) -> PublishedProtocol | None:
    """What --protocol names."""
    return None if arguments.protocol is None else PUBLISHED[arguments.protocol]


def settle(arguments: argparse.Namespace, *, num_clips: int | None) -> None:
    """Sets the options that were not given: to those of --protocol, or to the usual ones.

    Args:
        num_clips: the usual number.

    Raises:
        ValueError: an option was given that has another value in the protocol; names both.
    """
    published = published_of(arguments)
    for name, usual in {"num_clips": num_clips, **_USUAL}.items():
        given = getattr(arguments, name, None)
        fixed = usual if published is None else getattr(published, name)
        if given is None:
            setattr(arguments, name, fixed)
        elif published is not None and given != fixed:
            raise ValueError(f"--{name}={given}: {arguments.protocol} has {fixed}; leave it or --protocol out")
    for name in _NOT_PUBLISHED if published is not None else ():
        if (given := getattr(arguments, name, None)) is not None:
            raise ValueError(f"--{name}={given}: is no part of --protocol={arguments.protocol}; leave one of them out")


def check_stride(arguments: argparse.Namespace, clips: ClipTransform) -> None:
    """Raises ValueError where the clips of a run are cut otherwise than --protocol has it."""
    published = published_of(arguments)
    if published is not None and (clips.stride != published.stride or clips.fps is not None):
        of_run = f"fps={clips.fps}" if clips.fps is not None else f"stride={clips.stride}"
        also = " --config.data.clips.fps=None" if clips.fps is not None else ""
        raise ValueError(
            f"--protocol={arguments.protocol}: has stride {published.stride}, the run has {of_run}; leave it "
            "out, or judge it on other clips than it was trained on with "
            f"--config.data.clips.stride={published.stride}{also}"
        )


def notes_of(arguments: argparse.Namespace) -> list[str]:
    """What a card says of a value under a published name."""
    published = published_of(arguments)
    return [] if published is None else [f"{arguments.protocol}: {line}" for line in published.otherwise]
