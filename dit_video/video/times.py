"""Times of frames: the rate that they tell, the holes between them, and the frames nearest to an even rate."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int

# A difference between two frames above so many medians of all is a hole: something was not recorded there.
HOLE = 10
# Frames that are no further from an even grid than this share of its steps are each nearest to a point of their own.
_UNEVEN = 0.25
# Of exact rates that are found where the clock of a container is coarse: 24000/1001 and the like.
_NTSC = Fraction(1000, 1001)
_MILLISECOND = 0.001001
# Numerators and denominators of FFmpeg's fractions have 31 bits.
_LARGEST = 1 << 30


@dataclass(frozen=True)
class Pace:
    """Pace of a video.

    Attributes:
        rate: frames per second, exact.
        frames: where the times are uneven, the frame nearest to each point of the even grid, from first to last.
        slowest, fastest: frames per second by the longest and the shortest difference of two frames.
    """

    rate: Fraction
    frames: Int[np.ndarray, "n"] | None
    slowest: float
    fastest: float


def seconds(times: Sequence[int | None], time_base: Fraction) -> Float[np.ndarray, "n"] | None:
    """Seconds since the first frame; None where a time is missing or they do not ascend."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 2 or any(b < a for a, b in itertools.pairwise(known)):
        return None
    # Integers of Python: clocks of strangers may start anywhere in 64 bits.
    ticks = np.array([float(time - known[0]) for time in known])
    return ticks * float(time_base) if ticks[-1] else None


def holes(times: Float[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Numbers of the frames before which there is a hole."""
    steps = np.diff(times)
    positive = steps[steps > 0]
    return np.flatnonzero(steps > HOLE * np.median(positive)) + 1 if len(positive) else np.zeros(0, int)


def pace(times: Float[np.ndarray, "n"], tick: Fraction, stated: Iterable[Fraction]) -> Pace:
    """Pace of frames by their times in seconds, of which there are two different ones at least.

    Times within a tick of an even grid are those of a constant rate, rounded; a rate that the container states, an
    integer, or one over 1.001 is then preferred to the mean, which is as inexact as a tick. So it is where they are
    within a millisecond, which is what a file has that was once a WebM.

    Args:
        tick: what the container's clock counts, in seconds.
    """
    steps = np.diff(times)
    span = Fraction(round((times[-1] - times[0]) / tick)) * tick
    mean = (len(times) - 1) / span
    # The shortest that a clock tells is a tick.
    slowest, fastest = 1 / float(steps.max()), 1 / max(float(steps.min()), float(tick))
    simple = [rate for rate in (*stated, Fraction(round(mean)), round(mean / _NTSC) * _NTSC) if rate]
    exact, rounded = 1.001 * float(tick), max(float(tick), _MILLISECOND)
    for rate, most in (*((rate, exact) for rate in simple), (mean, exact), *((rate, rounded) for rate in simple)):
        if _furthest(times, rate) <= most:
            return Pace(bounded(rate), None, slowest, fastest)
    rate = bounded(mean)
    if _furthest(times, rate) * float(rate) <= _UNEVEN:
        return Pace(rate, None, slowest, fastest)
    return Pace(rate, nearest(times, times[0] + np.arange(len(times)) / float(rate)), slowest, fastest)


def _furthest(times: Float[np.ndarray, "n"], rate: Fraction) -> float:
    """The furthest that a frame is from its place on an even grid that begins with the first."""
    return float(np.abs(times - times[0] - np.arange(len(times)) / float(rate)).max())


def bounded(rate: Fraction) -> Fraction:
    """The rate, or the nearest that FFmpeg can count with; of those beyond 2^30 the nearest integer."""
    if max(rate.numerator, rate.denominator) <= _LARGEST:
        return rate
    if rate < 1:
        return 1 / bounded(1 / rate)
    return rate.limit_denominator(max(1, _LARGEST // math.ceil(rate)))


def nearest(times: Float[np.ndarray, "n"], wanted: Float[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
    """Number of the frame nearest to each time, the earlier of two."""
    return np.searchsorted((times[:-1] + times[1:]) / 2, wanted - 1e-9, side="left")


def at_rate(fps: float, wanted_fps: float, num_frames: int) -> Int[np.ndarray, "num_frames"]:
    """Offsets of the frames of a video of one rate that are nearest to those of another, the earlier of two."""
    places = np.arange(num_frames) * (fps / wanted_fps)
    # Rates are rounded: what is half-way between two frames but for that is half-way.
    return np.maximum(np.ceil(places - 0.5 - 1e-4), 0).astype(int)
