"""Ways of making a video with one run: from nothing or a picture, before, after, between, in a loop, of another.

All are windows of the length that the run was trained on, of which some frames, or cells, are known (`Batch.known`).
What is longer goes window by window: the last frames made are the first of the next, so that memory does not grow.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from dit_video.tasks.known_frames import Pattern
from dit_video.vae.vae import VAEConfig

Clips = UInt8[np.ndarray, "N T H W 3"]
Frames = UInt8[np.ndarray, "T H W 3"]


class Asked(NamedTuple):
    """What was typed; None or False where it was not.

    Attributes:
        extend: frames to add, before the video where negative.
        strength: in (0, 1]: how much of a video is made anew.
    """

    video: Path | None = None
    extend: int | None = None
    to: Path | None = None
    between: int | None = None
    loop: bool = False
    strength: float | None = None
    mask: Path | None = None

    @property
    def any(self) -> bool:
        return self != Asked()

    @property
    def words(self) -> str:
        """The option that says what is made, as it was typed; of a video alone, that."""
        values = {name: getattr(self, name) for name in ("extend", "to", "strength", "mask")}
        typed = [f"--{name}={value}" for name, value in values.items() if value is not None]
        return next(iter(typed), "--loop" if self.loop else f"--video={self.video}")

    def check(self) -> None:
        """Raises ValueError where options do not go together; names them."""
        if self.video is None:
            for name in ("extend", "to", "between", "strength", "mask"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name}={getattr(self, name)}: of which video? name it with --video")
            return
        if (self.to is None) != (self.between is None):
            raise ValueError("--to and --between: the video that is led to, and how many frames lie between; type both")
        ways = {
            "--extend": self.extend is not None,
            "--to": self.to is not None,
            "--loop": self.loop,
            "--strength": self.strength is not None,
            "--mask": self.mask is not None,
        }
        chosen = [name for name, typed in ways.items() if typed]
        if len(chosen) != 1:
            remedy = f"one of {', '.join(ways)}" if not chosen else f"not {' and '.join(chosen)} together"
            raise ValueError(f"--video={self.video}: say what is to be made of it: {remedy}")
        if self.extend == 0:
            raise ValueError("--extend=0: must be frames to add after the video, or below 0 before it")
        if self.between is not None and self.between < 1:
            raise ValueError(
                f"--between={self.between}: two clips that are {self.between} frames apart overlap; must be at least 1"
            )
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"--strength={self.strength}: must be above 0 (as it is) and at most 1 (all anew)")


class Window(NamedTuple):
    """A window to be made: a clip of which some is known.

    Attributes:
        video: what is known in its place; the rest means nothing. None: nothing is.
        known: of the latent frames, or cells, of all clips alike.
    """

    video: Clips | None
    known: Bool[np.ndarray, "t"] | Bool[np.ndarray, "t h w"] | None


NOTHING = Window(None, None)

# (window, its frames, its number, for another noise in each) -> the clips of the window.
Make = Callable[[Window, int, int], Clips]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of windows for a run.

    Attributes:
        vae: its codec.
        num_frames: of a clip that it was trained on.
    """

    vae: VAEConfig
    num_frames: int

    @property
    def group(self) -> int:
        """Frames of a latent frame after the first."""
        return self.vae.compression[0]

    def latent(self, num_frames: int) -> int:
        """Latent frames of a clip."""
        return 1 + (num_frames - 1) // self.group

    @property
    def most(self) -> int:
        """Latent frames of a window."""
        return self.latent(self.num_frames)

    def require_two(self, option: str) -> None:
        """Raises ValueError where clips have one latent frame, so that none can be known of others."""
        if self.most < 2:
            raise ValueError(
                f"{option}: clips of this run have {self.num_frames} frames, one latent frame; none can be known and "
                "another made"
            )

    def whole(self, num_frames: int) -> int:
        """The largest clip of whole latent frames that is no longer: 1 + group k frames."""
        return 1 + (num_frames - 1) // self.group * self.group


def from_nothing(lengths: Lengths, num_frames: int, make: Make, say: Callable[[str], None]) -> Iterator[Clips]:
    """A video longer than the run was trained on: a clip, then its extension."""
    first = make(NOTHING, lengths.num_frames, 0)
    yield first
    yield from extension(lengths, first, num_frames - lengths.num_frames, make, say, option="--num_frames")


def extension(
    lengths: Lengths,
    clips: Clips,
    num_new: int,
    make: Make,
    say: Callable[[str], None],
    *,
    option: str = "--extend",
    piece: int = 1,
) -> Iterator[Clips]:
    """`num_new` frames after clips, as they are made."""
    lengths.require_two(option)
    group, done = lengths.group, 0
    needed = -(-num_new // group)
    half = 1 + group * (max(lengths.most // 2, 1) - 1)
    room = lengths.num_frames - group * needed
    context = min(lengths.whole(clips.shape[1]), room if room >= 1 else half)
    windows = 1 if room >= 1 else -(-num_new // (lengths.num_frames - half))
    long = f"; {windows} windows of {lengths.num_frames} frames, each from the last {half}" if room < 1 else ""
    say(f"{option}: the last {context} of {clips.shape[1]} frames are known (1 + {group}k){long}")
    while done < num_new:
        length = min(lengths.num_frames, context + group * -(-(num_new - done) // group))
        video = _padded_after(clips[:, -context:], length)
        known = np.arange(lengths.latent(length)) < lengths.latent(context)
        new = make(Window(video, known), length, piece)[:, context:][:, : num_new - done]
        yield new
        done, piece = done + new.shape[1], piece + 1
        clips = np.concatenate([clips[:, -half:], new], axis=1)
        context = min(half, lengths.whole(clips.shape[1]))


def extension_before(
    lengths: Lengths, clips: Clips, num_new: int, make: Make, say: Callable[[str], None]
) -> UInt8[np.ndarray, "N {num_new} H W 3"]:
    """`num_new` frames before clips.

    Raises:
        ValueError: there are fewer frames than a latent frame has that does not begin a clip.
    """
    group, most = lengths.group, lengths.most
    if clips.shape[1] < group:
        raise ValueError(
            f"--extend={-num_new}: the video has {clips.shape[1]} frames, but what does not begin a clip is known by "
            f"groups of {group}"
        )
    lengths.require_two("--extend")
    made: list[Clips] = []
    left = num_new
    while left > 0:
        before = min(-(-(left - 1) // group) + 1, most - 1)
        # Where it takes several windows, half of each is known.
        before = min(before, most - most // 2) if left > 1 + group * (most - 2) else before
        context = min(clips.shape[1] // group, most - before)
        if not made:
            say(f"--extend: the first {group * context} of {clips.shape[1]} frames are known ({group}k)")
        length = 1 + group * (before + context - 1)
        video = _padded_before(clips[:, : group * context], length)
        known = np.arange(before + context) >= before
        new = make(Window(video, known), length, len(made))[:, : length - group * context][:, -left:]
        made.insert(0, new)
        clips = np.concatenate([new, clips], axis=1)[:, : group * most]
        left -= new.shape[1]
    return np.concatenate(made, axis=1)


def connection(
    lengths: Lengths,
    first: Clips,
    last: UInt8[np.ndarray, "N U H W 3"],
    between: int,
    make: Make,
    say: Callable[[str], None],
    *,
    option: str = "--between",
    piece: int = 0,
) -> UInt8[np.ndarray, "N {between} H W 3"]:
    """The frames between the end of `first` and the beginning of `last`.

    Raises:
        ValueError: so many do not fit into a window with both, or are no whole latent frames.
    """
    group, most, latent = lengths.group, lengths.most, between // lengths.group
    if between % group:
        below = between - between % group
        raise ValueError(
            f"{option}={between}: must be a multiple of {group}, the frames of a latent frame; nearest are "
            f"{' and '.join(str(n) for n in (below, below + group) if n)}"
        )
    if latent + 2 > most:
        raise ValueError(
            f"{option}={between}: clips of this run have {lengths.num_frames} frames, of which both ends are known, so "
            f"that {max(0, group * (most - 2))} at most lie between"
        )
    if last.shape[1] < group:
        raise ValueError(f"--to: {last.shape[1]} frames, but what does not begin a clip is known by groups of {group}")
    before = min(lengths.latent(lengths.whole(first.shape[1])), (most - latent + 1) // 2)
    after = min(last.shape[1] // group, most - latent - before)
    known_before, known_after = 1 + group * (before - 1), group * after
    say(f"{option}: the last {known_before} frames of the one and the first {known_after} of the other are known")
    length = known_before + between + known_after
    video = np.concatenate(
        [_padded_after(first[:, -known_before:], known_before + between), last[:, :known_after]], axis=1
    )
    places = np.arange(lengths.latent(length))
    known = (places < before) | (places >= before + latent)
    return make(Window(video, known), length, piece)[:, known_before : known_before + between]


def painted(
    lengths: Lengths, clips: Clips, outside: Bool[np.ndarray, "T H W"], patch: tuple[int, int, int], make: Make
) -> Clips:
    """Clips with what is not `outside` made anew. A cell is known where all its pixels are, and its patch too."""
    group, rows, columns = lengths.vae.compression
    height, width = outside.shape[1] // rows, outside.shape[2] // columns
    frames = np.concatenate([outside[:1].repeat(group, axis=0), outside[1:]])
    cells = frames.reshape(-1, group, height, rows, width, columns).all(axis=(1, 3, 5))
    by_patch = cells.reshape(-1, height // patch[1], patch[1], width // patch[2], patch[2]).all(axis=(2, 4))
    known = by_patch.repeat(patch[1], axis=1).repeat(patch[2], axis=2)
    return make(Window(clips, known), clips.shape[1], 0)


def pattern_of(asked: Asked) -> Pattern | None:
    """What has to be known in training for what is asked; None for nothing."""
    if asked.extend is not None:
        return Pattern.FIRST if asked.extend > 0 else Pattern.LAST
    if asked.to is not None or asked.loop:
        return Pattern.ENDS
    return Pattern.REGION if asked.mask is not None else None


def _padded_after(clips: Clips, num_frames: int) -> UInt8[np.ndarray, "N {num_frames} H W 3"]:
    return np.pad(clips, ((0, 0), (0, num_frames - clips.shape[1]), (0, 0), (0, 0), (0, 0)), mode="edge")


def _padded_before(clips: Clips, num_frames: int) -> UInt8[np.ndarray, "N {num_frames} H W 3"]:
    return np.pad(clips, ((0, 0), (num_frames - clips.shape[1], 0), (0, 0), (0, 0), (0, 0)), mode="edge")
