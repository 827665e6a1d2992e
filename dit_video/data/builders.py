"""Moving handwritten digits (like Moving MNIST): a video data set that needs no download.

The digits are the 1,797 8x8 scans of the UCI ML hand-written digits test set, as scikit-learn ships them.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit_video.config.atomic import new_folder
from dit_video.config.bounds import at_least
from dit_video.data.record import Split
from dit_video.data.video_set import MANIFEST, Entry, Manifest, read_manifest, write_video_set
from dit_video.video.encode import encode_mp4

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Compass of the picture, from "right" counter-clockwise in eighths of a turn.
_DIRECTIONS = (
    "to the right",
    "up and to the right",
    "up",
    "up and to the left",
    "to the left",
    "down and to the left",
    "down",
    "down and to the right",
)
FPS = 8.0
_SCAN = 8
_HELD_OUT_SCANS = 0.2
# Pixels per frame.
_SPEED = (1.0, 3.0)
_DARK, _BRIGHT = 16.0, 255.0


@dataclass(frozen=True, kw_only=True)
class DigitSettings:
    """Settings of the moving-digits set; see sources.MovingDigits."""

    num_train: int
    num_held_out: int
    size: int
    num_frames: int
    digit_size: int
    seed: int

    def __post_init__(self):
        at_least(self, 1, "num_train", "num_held_out", "num_frames")
        at_least(self, 0, "seed")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"MovingDigits.size={self.size}: must be even, for mp4 holds even sizes only")
        if not _SCAN <= self.digit_size < self.size:
            raise ValueError(
                f"MovingDigits.digit_size={self.digit_size}: must be from {_SCAN} to below size={self.size}"
            )

    def num_clips(self, split: Split) -> int:
        return self.num_train if split is Split.TRAIN else self.num_held_out


def prepared_digits(
    directory: str | os.PathLike,
    settings: DigitSettings,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Opens a moving-digits set in `directory`, making it first where it does not exist; returns its manifest.

    Raises:
        ValueError: the folder was made with other settings (names them), or is something else.
    """
    path = Path(directory)
    if not (path / MANIFEST).exists():
        try:
            return _make(path, settings, progress)
        except FileExistsError:
            # Another process of this run may have finished first; anything else fails below.
            pass
    manifest = read_manifest(path, remedy="give MovingDigits another directory")
    expected = {"made_by": "moving_digits"} | asdict(settings)
    for name, value in expected.items():
        if (actual := manifest.settings.get(name)) != value:
            raise ValueError(
                f"MovingDigits.{name}={value}: {path} was made with {name}={actual}; "
                f"give MovingDigits another directory, or delete that one (rm -r {path})"
            )
    return manifest


def _make(path: Path, settings: DigitSettings, progress: Callable[[int, int], None]) -> Manifest:
    with new_folder(path) as directory, tempfile.TemporaryFile(dir=directory.parent) as spool:
        entries, places = [], {}
        for split in Split:
            for clip in range(settings.num_clips(split)):
                scan, label, caption, video = moving_digit(settings, split, clip)
                data = encode_mp4(video, FPS, crf=8, preset="veryfast")
                entry = Entry(
                    file=f"{split}/{clip:06d}-scan{scan:04d}",
                    source="sklearn.datasets.load_digits",
                    sha256=hashlib.sha256(video.tobytes()).hexdigest(),
                    split=split,
                    frames=settings.num_frames,
                    fps=FPS,
                    width=settings.size,
                    height=settings.size,
                    label=CLASS_NAMES[label],
                    caption=caption,
                    stored="encoded",
                    num_bytes=len(data),
                )
                places[entry.file] = spool.tell()
                spool.write(data)
                entries.append(entry)
        manifest = Manifest(
            settings={"made_by": "moving_digits"} | asdict(settings),
            class_names=CLASS_NAMES,
            entries=tuple(entries),
        )

        def load(entry: Entry) -> bytes:
            spool.seek(places[entry.file])
            return spool.read(entry.num_bytes)

        return write_video_set(directory, manifest, load, shard_size=1 << 30, on_record=progress)


def moving_digit(
    settings: DigitSettings, split: Split, clip: int
) -> tuple[int, int, str, UInt8[np.ndarray, "T H W 3"]]:
    """Renders clip number `clip` of a split, a pure function of its arguments.

    Returns:
        Number of the scan, digit, caption, video.
    """
    rng = np.random.default_rng((settings.seed, tuple(Split).index(split), clip))
    images, _ = _scans()
    # Digits in turn, so that every class is equally frequent.
    digit = clip % 10
    scan = int(rng.choice(_scans_of(split)[digit]))
    angle = rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(*_SPEED)
    room = settings.size - settings.digit_size
    start = rng.uniform(0, room, size=2)
    # Rows grow downwards, so moving up is a negative velocity.
    velocity = speed * np.array([-np.sin(angle), np.cos(angle)])
    positions = _bounce(start + np.arange(settings.num_frames)[:, None] * velocity, room)
    rows, columns = (_resampling(positions[:, axis], settings) for axis in (0, 1))
    ink = np.clip(rows @ images[scan] @ columns.transpose(0, 2, 1), 0, 1)
    grey = np.rint(_DARK + (_BRIGHT - _DARK) * ink).astype(np.uint8)
    direction = _DIRECTIONS[round(angle / (np.pi / 4)) % 8]
    article = "an" if digit == 8 else "a"
    caption = f"{article} {CLASS_NAMES[digit]} moving {direction}"
    return scan, digit, caption, np.repeat(grey[..., None], 3, axis=-1)


def _bounce(positions: Float[np.ndarray, "T 2"], room: int) -> Float[np.ndarray, "T 2"]:
    """Positions of a free flight reflected at both ends of [0, room]."""
    return room - np.abs(positions % (2 * room) - room)


def _resampling(offsets: Float[np.ndarray, "T"], settings: DigitSettings) -> Float[np.ndarray, "T size scan"]:
    """Interpolation matrices, one per frame, that draw one axis of a scan at an offset:
    cubic convolution (Keys 1981, a = -1/2).

    One interpolation both enlarges and moves, so motion by fractions of a pixel stays smooth.
    """
    scale = settings.digit_size / _SCAN
    centres = (np.arange(settings.size) + 0.5 - offsets[:, None]) / scale - 0.5
    x = np.abs(centres[:, :, None] - np.arange(_SCAN))
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def _scans() -> tuple[Float[np.ndarray, "num 8 8"], Int[np.ndarray, "num"]]:
    """Scans of digits with ink in [0, 1], and their labels."""
    # scikit-learn takes a second to import, and only making the set needs it.
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images / 16, digits.target


@functools.cache
def _scans_of(split: Split) -> tuple[Int[np.ndarray, "..."], ...]:
    """Scans of a split by digit. Held out are those of each digit whose numbers hash lowest."""
    _, digits = _scans()
    chosen = []
    for digit in range(10):
        scans = sorted(np.flatnonzero(digits == digit), key=lambda scan: hashlib.sha256(str(scan).encode()).digest())
        num_held_out = round(len(scans) * _HELD_OUT_SCANS)
        chosen.append(np.array(scans[:num_held_out] if split is Split.HELD_OUT else scans[num_held_out:]))
    return tuple(chosen)
