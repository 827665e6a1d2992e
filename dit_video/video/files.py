"""Video files opened by FFmpeg through PyAV, safe for untrusted files, and their frames one after the other.

FFmpeg through PyAV, one thread per video: parallelism is across videos.

A file may be a stranger's: FFmpeg reads from it alone and never follows it to another file or address, and what
it decodes to is bounded by the constants below, whatever its header claims.
"""

import errno
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dit_video.video.pictures import MAX_FRAME_PIXELS, VideoError, check_size

# 4.8 hours at 30 frames a second. What is kept per packet is then some 100 MB at most.
MAX_FRAMES = 1 << 19
# All frames of a file together: 73 minutes of 1080p at 30 frames a second. A bomb of 8K frames ends within minutes.
MAX_VIDEO_PIXELS = 1 << 38
# Of an animated picture, whose kilobytes may unpack to gigabytes: 4000 frames of full HD.
MAX_ANIMATION_PIXELS = 1 << 33
# Slower rates would round to 0 in a re-encoded file; the clock of MPEG, which streams without a rate claim, is 90 kHz.
MIN_FPS, MAX_FPS = Fraction(1, 1000), 90_000
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Playlists (HLS, DASH, concat) name files and addresses to go on with; with no protocol allowed, none is opened.
_READ_OPTIONS = {"protocol_whitelist": "none", "max_pixels": str(MAX_FRAME_PIXELS)}
# Brands of picture files that have the container of mp4.
_PICTURE_BRANDS = {"avif", "avis", "heic", "heix", "hevc", "mif1", "msf1"}
# VP8 and VP9 keep alpha in a stream of its own, which FFmpeg's own decoders ignore.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@contextmanager
def open_video(source: bytes | str | os.PathLike) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the best video stream in a file or its bytes: FFmpeg's choice, which of an animated AVIF is not the still.

    Raises:
        VideoError: not a media file, a still picture, sound only, or frames larger than MAX_FRAME_PIXELS; also
            wraps any decoding error raised inside the block.
    """
    with _opened(source) as file:
        _check_animation(file.read(21))
        file.seek(0)
        try:
            with av.open(file, "r", metadata_errors="replace", options=_READ_OPTIONS) as container:
                stream = _moving_picture(container)
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": _READ_OPTIONS["max_pixels"]}
                check_size(stream.codec_context.height, stream.codec_context.width, "its header says")
                yield container, stream
        except av.FFmpegError as error:
            # Of a file written within the block: no fault of the one that is read.
            if error.errno in NO_SPACE:
                raise OSError(error.errno, error.strerror) from error
            raise VideoError(f"not a readable video: {error.strerror}") from error


def _opened(source: bytes | str | os.PathLike) -> io.BytesIO | io.BufferedReader:
    """A file that FFmpeg reads through Python: it never sees a name, which could be that of a device or address."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not os.path.isfile(source):
        raise VideoError("not a regular file" if os.path.exists(source) else "no such file")
    try:
        return open(source, "rb")
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}") from error


def _check_animation(head: bytes) -> None:
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        raise VideoError("an animated WebP, which this FFmpeg cannot read; convert it to GIF, APNG or mp4")


def _moving_picture(container: InputContainer) -> VideoStream:
    format_name = container.format.name
    if format_name.startswith("image2") or format_name.endswith("_pipe"):
        raise VideoError("a picture, not a video")
    if format_name == "tty":
        raise VideoError("text, not a video")
    stream = container.streams.best("video")
    if stream is None or _is_cover(stream):
        stream = next((other for other in container.streams.video if not _is_cover(other)), None)
    if stream is None:
        raise VideoError("sound only" if container.streams.audio else "no video stream")
    if stream.codec_context is None:
        raise VideoError("a codec that this FFmpeg cannot decode")
    return cast(VideoStream, stream)


def _is_cover(stream: Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def is_picture_format(container: InputContainer) -> bool:
    """Whether a file of this format that has one frame is a picture: GIF, AVIF, HEIF, APNG."""
    brand = container.metadata.get("major_brand", "").strip()
    return brand in _PICTURE_BRANDS or container.format.name in ("gif", "apng")


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return aspect if aspect > 0 else Fraction(1)


def frame_rate(stream: VideoStream) -> Fraction:
    """Frame rate in frames per second, as the container states it.

    Raises:
        VideoError: it states none, or one outside MIN_FPS to MAX_FPS.
    """
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError("states no frame rate")
    return checked_rate(rate, "states")


def stated_rates(stream: VideoStream) -> list[Fraction]:
    """The frame rates that a container or FFmpeg's guess name, of which some may be wrong."""
    rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
    return [rate for rate in dict.fromkeys(rates) if rate and MIN_FPS <= rate <= MAX_FPS]


def checked_rate(rate: Fraction, verb: str) -> Fraction:
    """Raises VideoError where a rate lies outside of MIN_FPS to MAX_FPS."""
    if not MIN_FPS <= rate <= MAX_FPS:
        raise VideoError(f"{verb} {float(rate):.3g} frames a second, not {float(MIN_FPS)} to {MAX_FPS}; re-encode it")
    return rate


@dataclass
class PacketLog:
    """What is known of the packets of a stream, in the order in which they are decoded.

    Attributes:
        times: their presentation times; `keys`, whether decoding can begin there; `corrupt`, whether the demuxer
            found them incomplete; `failed`, whether the decoder refused them.
        noticed: how many frames had been shown when something was found wrong, each time.
        num_discarded: packets that an edit list leaves out, which are not among them.
        broken: why the file breaks off; empty where it does not.
    """

    times: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    corrupt: list[bool] = field(default_factory=list)
    failed: list[bool] = field(default_factory=list)
    noticed: list[int] = field(default_factory=list)
    num_discarded: int = 0
    broken: str = ""

    def add(self, packet: av.Packet) -> None:
        if packet.is_discard:
            self.num_discarded += 1
            return
        self.times.append(packet.pts)
        self.keys.append(packet.is_keyframe)
        self.corrupt.append(packet.is_corrupt)
        self.failed.append(False)

    @property
    def timed(self) -> bool:
        """Whether each packet has a time of its own, by which its frame can be found."""
        return not self.num_discarded and None not in self.times and len(set(self.times)) == len(self.times)


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The decoder for a stream: the stream's own, or one that also decodes its alpha."""
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1" or own.name not in _ALPHA_DECODERS:
        return own
    decoder = VideoCodecContext.create(_ALPHA_DECODERS[own.name], "r")
    assert isinstance(decoder, VideoCodecContext), "a decoder of video"
    decoder.thread_count = 1
    decoder.extradata = own.extradata
    return decoder


def decoded_frames(container: InputContainer, stream: VideoStream, log: PacketLog) -> Iterator[VideoFrame]:
    """Decodes every frame that can be, in the order in which they are shown; `log` receives what went wrong.

    Raises:
        VideoError: no frame can be decoded; or MAX_FRAMES or MAX_VIDEO_PIXELS is passed.
    """
    num_frames = 0
    most = MAX_ANIMATION_PIXELS if is_picture_format(container) else MAX_VIDEO_PIXELS
    for frame in bounded(_frames(container, stream, log), most):
        num_frames += 1
        yield frame
    if not num_frames:
        raise VideoError(f"breaks off after frame 0: {log.broken}" if log.broken else "holds no frame")


def _frames(container: InputContainer, stream: VideoStream, log: PacketLog) -> Iterator[VideoFrame]:
    decoder, num_frames = decoder_of(stream), 0
    for packet in _until_broken(counted(container.demux(stream)), log):
        if packet.size:
            log.add(packet)
        try:
            frames = decoder.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            frames, log.broken = [], str(error.strerror)
            if log.failed:
                log.failed[-1] = True
        if log.failed and (log.failed[-1] or log.corrupt[-1]):
            log.noticed.append(num_frames)
        num_frames += len(frames)
        yield from frames


def _until_broken(packets: Iterable[av.Packet], log: PacketLog) -> Iterator[av.Packet]:
    try:
        yield from packets
    except av.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        log.broken = str(error.strerror)


def counted(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Passes packets on; raises after MAX_FRAMES of them."""
    for number, packet in enumerate(packets):
        if number > MAX_FRAMES:
            raise VideoError(f"has more than {MAX_FRAMES} packets; cut it")
        yield packet


def bounded(frames: Iterable[VideoFrame], most: int = MAX_VIDEO_PIXELS) -> Iterator[VideoFrame]:
    """Passes frames on; raises where a file decodes to more than the limits."""
    num_pixels = 0
    for number, frame in enumerate(frames, 1):
        num_pixels += frame.height * frame.width
        if number > MAX_FRAMES:
            raise VideoError(f"has more than {MAX_FRAMES} frames; cut it")
        if num_pixels > most:
            raise VideoError(f"decodes to more than {most} pixels within {number} frames; cut it")
        yield frame
