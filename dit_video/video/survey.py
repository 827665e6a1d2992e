"""Survey of a file: which of its frames make one video, at what rate, and what is done to its pictures.

The frames of a file are one video as long as they are whole, of one size and follow each other in time. Where they
do not, the file is cut, and its longest stretch is the video; what is left out is counted. A group of pictures
(from one key frame to the next) in which the decoder meets damage is left out whole: damage is seen before it is
noticed. So reads every user of videos: ingest, evaluation of folders, `decode`.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Bool, Int

from dit_video.video.files import (
    PacketLog,
    checked_rate,
    counted,
    decoded_frames,
    frame_rate,
    is_picture_format,
    open_video,
    pixel_aspect,
    stated_rates,
)
from dit_video.video.pictures import UPRIGHT, PictureReader, Pictures, VideoError, deinterlaced
from dit_video.video.times import Pace, holes, pace, seconds
from dit_video.video.tone import Gamut, Transfer

# Frames that a decoder may hold back to show them in order.
_MOST_DELAYED = 16


@dataclass(frozen=True)
class Survey:
    """What a file is as a video.

    Attributes:
        coding: names of the container, the codec and the pixel format.
        timed: whether each packet of the file has a time of its own.
        kinds: what its frames say of themselves, in the order in which they first say so.
        size: height and width, upright, in square pixels.
        rate: frames per second.
        positions: of its frames among all that are decoded, in order; repeated where the rate is made even.
        frames: the same as numbers for `decode_window`; None where they are all frames of the file, each once.
        left_out: number of the file's frames that are not in the video.
        doubled: number of frames of the video that repeat the one before.
        notes: what was done to its pictures and times, and left out, each in a few words.
    """

    coding: tuple[str, str, str | None]
    timed: bool
    kinds: tuple[Pictures, ...]
    size: tuple[int, int]
    rate: Fraction
    positions: Int[np.ndarray, "T"]
    frames: Int[np.ndarray, "T"] | None
    left_out: int
    doubled: int
    notes: tuple[str, ...]

    @property
    def plain(self) -> bool:
        """Whether its frames are plain as they are stored."""
        return all(pictures.plain for pictures in self.kinds)

    @property
    def filtered(self) -> bool:
        """Whether its frames become plain only by way of RGB: filtered, or turned."""
        return any(pictures.filtered or pictures.orientation != UPRIGHT for pictures in self.kinds)

    def of(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """The frames of the video, deinterlaced, from the file opened anew."""
        place = 0
        for position, frame in deinterlaced(enumerate(decoded_frames(container, stream, PacketLog()))):
            while self.positions[place] == position:
                yield frame
                place += 1
                if place == len(self.positions):
                    return


def paced(data: bytes) -> tuple[int, float, Int[np.ndarray, "T"] | None]:
    """Number of frames, frames per second and numbers of the frames of an encoded video, by its packets alone.

    A quick `survey`, for bytes that are known to be whole: it sees times, and neither damage nor pictures.

    Raises:
        VideoError: the bytes are no video.
    """
    with open_video(data) as (container, stream):
        log = PacketLog()
        for packet in counted(container.demux(stream)):
            if packet.size:
                log.add(packet)
        stated, tick = stated_rates(stream), Fraction(stream.time_base or Fraction(1, 1000))
        ordered = sorted(time for time in log.times if time is not None) if log.timed else []
        times = seconds(ordered, tick)
        if times is None:
            return len(log.times), float(frame_rate(stream)), None
        edges = [0, *holes(times).tolist(), len(times)]
        start, stop = max(itertools.pairwise(edges), key=lambda edge: edge[1] - edge[0])
        if stop - start < 2:
            return stop - start, float(frame_rate(stream)), np.arange(start, stop)
        found = pace(times[start:stop], tick, stated)
    frames = np.arange(stop - start) if found.frames is None else found.frames
    whole = found.frames is None and stop - start == len(times)
    return len(frames), float(checked_rate(found.rate, "shows")), None if whole else start + frames


class _Seen:
    """What is kept of every frame of a file."""

    def __init__(self, aspect: Fraction):
        self._read = PictureReader(aspect)
        self._number: dict[Pictures, int] = {}
        self._last: Pictures | None = None
        self.kind: list[int] = []
        self.times: list[int | None] = []
        self.corrupt: list[bool] = []
        self.key: list[bool] = []
        self.transparent = False

    @property
    def kinds(self) -> list[Pictures]:
        """What frames say of their pictures; `kind` has the number of each frame's."""
        return list(self._number)

    def add(self, frame: VideoFrame) -> None:
        pictures = self._read(frame)
        if pictures is self._last:
            self.kind.append(self.kind[-1])
        else:
            self._last = pictures
            self.kind.append(self._number.setdefault(pictures, len(self._number)))
        self.times.append(frame.pts)
        self.corrupt.append(frame.is_corrupt)
        self.key.append(frame.key_frame)
        if pictures.alpha and not self.transparent:
            self.transparent = bool(frame.reformat(format="rgba", threads=1).to_ndarray()[..., 3].min() < 255)


def survey(source: bytes | str | os.PathLike) -> Survey:
    """Decodes a file whole and says what video it is.

    Raises:
        VideoError: no frame can be decoded, all that can are damaged, it is a still picture, or says of its
            pictures what cannot be honoured.
    """
    log = PacketLog()
    with open_video(source) as (container, stream):
        seen = _Seen(pixel_aspect(stream))
        for frame in decoded_frames(container, stream, log):
            seen.add(frame)
        if len(seen.times) == 1 and is_picture_format(container):
            raise VideoError("a picture, not a video")
        coding = (container.format.name, stream.codec_context.name, stream.codec_context.pix_fmt)
        rates, tick = stated_rates(stream), Fraction(stream.time_base or Fraction(1, 1000))
        damaged = _damaged(log, seen)
        chosen, reasons = _longest(seen, damaged, tick)
        times = seconds([seen.times[i] for i in chosen], tick)
        found = None if times is None else pace(times, tick, rates)
        rate = frame_rate(stream) if found is None else checked_rate(found.rate, "shows")
    positions = chosen if found is None or found.frames is None else chosen[found.frames]
    numbers, total = _numbers(log, seen)
    frames = numbers[positions]
    reasons["damaged"] = reasons.get("damaged", 0) + sum(log.failed)
    every = seen.kinds
    kinds = tuple(every[kind] for kind in dict.fromkeys(seen.kind[i] for i in chosen))
    num_taken = len(np.unique(positions))
    return Survey(
        coding=coding,
        timed=log.timed,
        kinds=kinds,
        size=kinds[0].size,
        rate=rate,
        positions=positions,
        frames=None if np.array_equal(frames, np.arange(total)) else frames,
        left_out=len(seen.times) + sum(log.failed) - num_taken,
        doubled=len(positions) - num_taken,
        notes=(
            *_picture_notes(kinds, seen.transparent),
            *_pace_notes(found, len(chosen)),
            *(f"{_frames(count)} left out: {reason}" for reason, count in reasons.items() if count),
        ),
    )


def _numbers(log: PacketLog, seen: _Seen) -> tuple[Int[np.ndarray, "n"], int]:
    """The number of each frame, and how many there are: by the times of packets, if they tell, else counted."""
    if log.timed:
        number = {time: i for i, time in enumerate(sorted(time for time in log.times if time is not None))}
        found = [number.get(time, -1) for time in seen.times if time is not None]
        if len(found) == len(seen.times) and min(found) >= 0 and len(set(found)) == len(found):
            return np.array(found), len(number)
    return np.arange(len(seen.times)), len(seen.times)


def _damaged(log: PacketLog, seen: _Seen) -> Bool[np.ndarray, "n"]:
    """Which frames are in a damaged group of pictures, or were decoded after what the demuxer found incomplete."""
    num_frames = len(seen.times)
    if not (any(seen.corrupt) or log.noticed):
        return np.zeros(num_frames, bool)
    place = {time: i for i, time in enumerate(log.times)}
    if not log.timed or not all(time in place for time in seen.times):
        return _damaged_by_count(log, seen)
    # Where in the order of decoding each frame stands, and its group.
    order = np.array([place[time] for time in seen.times])
    groups = np.cumsum(log.keys)
    group = groups[order]
    wrong = {int(groups[i]): int(i) for i in np.flatnonzero(log.corrupt)[::-1]}
    noticed = [int(i) for i in np.flatnonzero(log.failed)] + order[seen.corrupt].tolist()
    damaged = np.zeros(num_frames, bool)
    for number in {int(groups[i]) for i in noticed} | wrong.keys():
        begins = wrong.get(number, 0)
        if any(groups[i] == number and i < begins for i in noticed):
            begins = 0
        damaged |= (group == number) & (order >= begins)
    return damaged | _leaning(group, order, damaged)


def _leaning(
    group: Int[np.ndarray, "n"], order: Int[np.ndarray, "n"], damaged: Bool[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Frames decoded after the key frame that ends a damaged group, but shown before it: they refer to both."""
    leaning = np.zeros_like(damaged)
    for number in np.unique(group[damaged]):
        after = np.flatnonzero(group == number + 1)
        if len(after):
            leaning[after[after < after[np.argmin(order[after])]]] = True
    return leaning


def _damaged_by_count(log: PacketLog, seen: _Seen) -> Bool[np.ndarray, "n"]:
    """The same where packets have no times: a packet's frame is among the next that are shown."""
    group = np.cumsum(seen.key)
    last = len(group) - 1
    wrong = {int(group[i]) for i in np.flatnonzero(seen.corrupt)}
    for shown in log.noticed:
        wrong |= set(group[min(shown, last) : min(shown + _MOST_DELAYED, last) + 1].tolist())
    return np.isin(group, list(wrong))


def _longest(
    seen: _Seen, damaged: Bool[np.ndarray, "n"], tick: Fraction
) -> tuple[Int[np.ndarray, "T"], dict[str, int]]:
    """Positions of the longest whole stretch, the first of equals, and how many frames are left out why."""
    sizes = [pictures.size for pictures in seen.kinds]
    size = np.array([sizes[kind] for kind in seen.kind])
    times = seconds(seen.times, tick)
    after_hole = holes(times) if times is not None else np.zeros(0, int)
    changes = np.any(np.diff(size, axis=0) != 0, axis=1) | (np.diff(damaged.astype(int)) != 0)
    edges = sorted({0, len(size), *after_hole.tolist(), *(np.flatnonzero(changes) + 1).tolist()})
    stretches = [(start, stop) for start, stop in itertools.pairwise(edges) if not damaged[start]]
    if not stretches:
        raise VideoError("damaged: every group of pictures in it; fetch it again")
    start, stop = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
    rest = ~damaged
    rest[start:stop] = False
    other = rest & np.any(size != size[start], axis=1)
    why = "beyond a hole in time" if len(after_hole) else "beyond what is left out"
    reasons = {"damaged": int(damaged.sum()), "of another size": int(other.sum()), why: int((rest & ~other).sum())}
    return np.arange(start, stop), reasons


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _picture_notes(kinds: tuple[Pictures, ...], transparent: bool) -> Iterator[str]:
    for pictures in kinds:
        if pictures.transfer is not Transfer.SDR:
            yield f"tone-mapped from {pictures.transfer} ({pictures.gamut}, peak {pictures.peak} cd/m2) to BT.709 SDR"
            break
        if pictures.gamut is not Gamut.BT709:
            yield f"mapped from {pictures.gamut} to BT.709"
            break
    if any(pictures.interlaced for pictures in kinds):
        yield "deinterlaced"
    if transparent:
        yield "composited over black"
    if kinds[0].orientation != UPRIGHT:
        yield str(kinds[0].orientation)
    if kinds[0].aspect != 1:
        yield f"pixels of aspect {kinds[0].aspect} made square"


def _pace_notes(found: Pace | None, num_frames: int) -> Iterator[str]:
    if found is not None and found.frames is not None:
        num_taken = len(np.unique(found.frames))
        yield (
            f"variable rate ({found.slowest:.3g} to {found.fastest:.3g} frames a second) made {float(found.rate):.4g}: "
            f"{_frames(len(found.frames) - num_taken)} doubled, {_frames(num_frames - num_taken)} left out"
        )
