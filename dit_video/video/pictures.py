"""What a file says of its pictures (orientation, colours, fields, alpha, aspect), and plain RGB arrays made as it says.

Progressive, opaque SDR frames are converted by swscale alone. Fields, HDR, wide colours and alpha go through filters
of FFmpeg first: bwdif, lut3d (a table of tone.py) and overlay, over black.

swscale converts exactly only when asked to: without FULL_CHR_H_INT it computes one chroma value per pixel
pair and rounds down, which darkens a picture by 1-2 grey levels. All conversions here ask for it.
"""

import functools
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, cast

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.sidedata.sidedata import SideData, Type
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation, VideoReformatter
from jaxtyping import UInt8

from dit_video.video.tone import USUAL_PEAK, Gamut, Transfer, cube, grey_levels

_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_SHRINK = Interpolation.AREA | _EXACT
_ENLARGE = Interpolation.BICUBIC | _EXACT
# The largest frame of H.264 and of 8K cinema, 106 MB in RGB; a decoder may hold 17 frames of half that.
MAX_FRAME_PIXELS = 8192 * 4320
# What swscale takes for another matrix, silently, by FFmpeg's numbers (AVCOL_SPC_*).
_UNKNOWN_MATRICES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE 2085", 12: "derived from primaries"}
_UNKNOWN_MATRICES |= {13: "derived from primaries", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"}
_UNKNOWN_TRANSFERS = {ColorTrc.LINEAR: "linear light", ColorTrc.LOG: "a logarithm", ColorTrc.LOG_SQRT: "a logarithm"}
_UNKNOWN_TRANSFERS |= {ColorTrc.SMPTE428: "SMPTE 428"}
_TRANSFERS = {ColorTrc.SMPTE2084: Transfer.PQ, ColorTrc.ARIB_STD_B67: Transfer.HLG}
_GAMUTS = {ColorPrimaries.BT2020: Gamut.BT2020, ColorPrimaries.SMPTE431: Gamut.DCI_P3}
_GAMUTS |= {ColorPrimaries.SMPTE432: Gamut.DISPLAY_P3}


class VideoError(ValueError):
    """A video cannot be read; the message is for the owner of the file."""


class Orientation(NamedTuple):
    """One of the 8 ways in which a picture may lie: transposed or not, then flipped up-down, left-right, or both."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def upright(self, picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as it is meant to be seen, as a view."""
        if self == UPRIGHT:
            return picture
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def swapped(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width before of what has this height and width after, and the other way round."""
        return size[::-1] if self.transposed else size

    def __str__(self) -> str:
        turn = {(True, False): "turned left", (False, True): "turned right", (True, True): "turned right and mirrored"}
        if self.transposed:
            return turn.get((self.flip_rows, self.flip_columns), "turned left and mirrored")
        mirror = {(True, True): "turned upside down", (True, False): "mirrored up-down", (False, True): "mirrored"}
        return mirror.get((self.flip_rows, self.flip_columns), "upright")


UPRIGHT = Orientation()


@dataclass(frozen=True)
class Pictures:
    """What a file says of its pictures; equal for all frames that are made plain in the same way.

    Attributes:
        height, width: of a frame as it is stored.
        aspect: width of a pixel over its height.
        full_range: whether black is 0 and not 16 (of 8 bits).
        interlaced: whether this frame is two fields.
        peak: of HDR, the luminance in cd/m2 that the file was mastered with.
    """

    height: int
    width: int
    pixel_format: str
    bit_depth: int
    full_range: bool
    orientation: Orientation
    aspect: Fraction
    interlaced: bool
    alpha: bool
    transfer: Transfer
    gamut: Gamut
    peak: int

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width in square pixels, upright."""
        return self.orientation.swapped((self.height, max(1, round(self.width * self.aspect))))

    @functools.cached_property
    def plain(self) -> bool:
        """Whether its frames are upright, opaque, progressive BT.709 or BT.601 SDR in square pixels."""
        return not self.filtered and not self.interlaced and self.aspect == 1 and self.orientation == UPRIGHT

    @property
    def filtered(self) -> bool:
        """Whether colours or alpha need more than swscale."""
        return self.alpha or self.transfer != Transfer.SDR or self.gamut != Gamut.BT709


def pictures_of(frame: VideoFrame, aspect: Fraction = Fraction(1)) -> Pictures:
    """Reads what a decoded frame says of its picture.

    Args:
        aspect: of a pixel, which the stream says.

    Raises:
        VideoError: a display matrix that is none of 8, or colours that FFmpeg's swscale would take for others.
    """
    return _pictures(_said(frame), aspect)


def _said(frame: VideoFrame) -> tuple:
    """All that decides what `pictures_of` finds; read from every frame, so it must be quick."""
    side_data = _side_data(frame) if len(frame.side_data) else (UPRIGHT, USUAL_PEAK)
    colours = (frame.colorspace, frame.color_trc, frame.color_primaries, frame.color_range)
    return frame.height, frame.width, frame.format.name, frame.interlaced_frame, colours, side_data


def _pictures(said: tuple, aspect: Fraction) -> Pictures:
    height, width, pixel_format, interlaced, (matrix, curve, primaries, color_range), (orientation, peak) = said
    if name := _UNKNOWN_MATRICES.get(matrix):
        raise VideoError(f"its colours are {name}, which this FFmpeg cannot turn into RGB; re-encode it as BT.709")
    if name := _UNKNOWN_TRANSFERS.get(curve):
        raise VideoError(f"its transfer function is {name}; re-encode it as BT.709")
    bit_depth, alpha = _components(pixel_format)
    transfer = _TRANSFERS.get(curve, Transfer.SDR)
    return Pictures(
        height=height,
        width=width,
        pixel_format=pixel_format,
        bit_depth=bit_depth,
        full_range=color_range == ColorRange.JPEG,
        orientation=orientation,
        aspect=aspect,
        interlaced=interlaced,
        alpha=alpha,
        transfer=transfer,
        gamut=_GAMUTS.get(primaries, Gamut.BT709),
        peak=peak if transfer is Transfer.PQ else USUAL_PEAK,
    )


@functools.cache
def _components(pixel_format: str) -> tuple[int, bool]:
    """Bits of a component, and whether one is alpha."""
    components = VideoFormat(pixel_format).components
    return max(component.bits for component in components), any(component.is_alpha for component in components)


class PictureReader:
    """`pictures_of` the frames of one video, which mostly say the same."""

    def __init__(self, aspect: Fraction):
        self._aspect = aspect
        self._said: tuple | None = None
        self._pictures: Pictures | None = None

    def __call__(self, frame: VideoFrame) -> Pictures:
        said = _said(frame)
        if self._pictures is None or said != self._said:
            self._said, self._pictures = said, _pictures(said, self._aspect)
        return self._pictures


def _side_data(frame: VideoFrame) -> tuple[Orientation, int]:
    """Orientation, and the peak in cd/m2: of the brightest pixel, else of the display used for mastering."""
    orientation, light, display = UPRIGHT, 0, 0.0
    # Its stub calls it a mapping, but it goes over the data.
    for data in cast(Iterator[SideData], iter(frame.side_data)):
        if data.type is Type.DISPLAYMATRIX:
            orientation = _orientation(struct.unpack("9i", bytes(data)))
        elif data.type is Type.CONTENT_LIGHT_LEVEL:
            light = struct.unpack_from("I", bytes(data))[0]
        elif data.type is Type.MASTERING_DISPLAY_METADATA:
            # Of AVMasteringDisplayMetadata: ten fractions, of which the last is the maximum; whether they are known.
            numerator, denominator, _, known = struct.unpack_from("2i2i", bytes(data), 72)
            display = numerator / denominator if known and denominator > 0 else 0.0
    peak = light or display
    return orientation, round(min(peak, 10_000)) if peak >= 1 else USUAL_PEAK


def _orientation(matrix: tuple[int, ...]) -> Orientation:
    """Orientation by a display matrix [[a b u] [c d v] [x y w]] that takes (column, row) from the left."""
    a, b, _, c, d = matrix[:5]
    scale = max(abs(a), abs(b))
    if scale == 0 or {abs(a), abs(b)} != {0, scale} or (abs(c), abs(d)) != (abs(b), abs(a)):
        raise VideoError(
            "its display matrix turns, shears or scales pictures by other than quarter turns and mirrors "
            f"({', '.join(f'{value / 65536:.3g}' for value in (a, b, c, d))}); re-encode it upright"
        )
    return Orientation(transposed=a == 0, flip_rows=b + d < 0, flip_columns=a + c < 0)


def deinterlaced(frames: Iterable[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    """Numbered frames with the two fields of interlaced ones made one picture, by bwdif; others as they are.

    bwdif looks at the frame before and the one after. From the first interlaced frame on all pass through it, and
    it leaves alone those that are not.
    """
    fields: _Fields | None = None
    before: VideoFrame | None = None
    for number, frame in frames:
        if fields is not None and not fields.fits(frame):
            yield from fields.rest()
            fields = before = None
        if fields is None and frame.interlaced_frame:
            fields = _Fields(frame)
            if before is not None and fields.fits(before):
                fields.prepare(before)
        if fields is None:
            yield number, frame
        else:
            yield from fields.next(number, frame)
        before = frame
    if fields is not None:
        yield from fields.rest()


class _Fields:
    """The filter bwdif, which returns a frame when it has seen the one after."""

    def __init__(self, frame: VideoFrame):
        self._key = _layout(frame)
        self._filters = _chain(frame, "bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._waiting: list[tuple[int | None, int | None]] = []

    def fits(self, frame: VideoFrame) -> bool:
        return _layout(frame) == self._key

    def prepare(self, frame: VideoFrame) -> None:
        """Takes the frame before the first, which is not returned."""
        self._waiting.append((None, None))
        self._filters.sources[0].push(frame)

    def next(self, number: int, frame: VideoFrame) -> Iterator[tuple[int, VideoFrame]]:
        self._waiting.append((number, frame.pts))
        self._filters.sources[0].push(frame)
        yield from self._pull()

    def rest(self) -> Iterator[tuple[int, VideoFrame]]:
        self._filters.sources[0].push(None)
        yield from self._pull()

    def _pull(self) -> Iterator[tuple[int, VideoFrame]]:
        for frame in _pulled(self._filters.sink):
            number, frame.pts = self._waiting.pop(0)
            if number is not None:
                yield number, frame


def _layout(frame: VideoFrame) -> tuple[int, int, str]:
    return frame.height, frame.width, frame.format.name


class _Filters(NamedTuple):
    """A graph of filters, where frames go in and where they come out."""

    graph: Graph
    sources: list[FilterContext]
    sink: FilterContext


def _source(graph: Graph, frame: VideoFrame) -> FilterContext:
    """Where frames like this one go in."""
    size = {"width": frame.width, "height": frame.height}
    return graph.add_buffer(**size, format=frame.format, time_base=Fraction(1, 1000))


def _chain(frame: VideoFrame, name: str, arguments: str) -> _Filters:
    """One filter, for frames like this one."""
    graph = Graph()
    graph.threads = 1
    source, sink = _source(graph, frame), graph.add("buffersink")
    graph.link_nodes(source, graph.add(name, arguments), sink).configure()
    return _Filters(graph, [source], sink)


def _mapping(frame: VideoFrame, table: tuple[Transfer, Gamut, int]) -> _Filters:
    """The filter that maps colours by a table, for frames like this one."""
    # FFmpeg reads tables from files only, and this one while the graph is made.
    descriptor, path = tempfile.mkstemp(suffix=".cube")
    try:
        with open(descriptor, "wb") as file:
            file.write(cube(*table))
        escaped = path.replace("\\", "/").replace(":", "\\:").replace("'", "\\'")
        return _chain(frame, "lut3d", f"file={escaped}:interp=tetrahedral")
    finally:
        os.unlink(path)


def _overlay(frame: VideoFrame) -> _Filters:
    """The filter that lays frames like this one over others without alpha."""
    graph = Graph()
    graph.threads = 1
    ground = VideoFrame(frame.width, frame.height, "gbrp")
    sources = [_source(graph, ground), _source(graph, frame)]
    overlay, sink = graph.add("overlay", "format=gbrp"), graph.add("buffersink")
    for number, source in enumerate(sources):
        source.link_to(overlay, 0, number)
    overlay.link_to(sink)
    graph.configure()
    return _Filters(graph, sources, sink)


def _pulled(sink: FilterContext) -> Iterator[VideoFrame]:
    while True:
        try:
            yield cast(VideoFrame, sink.pull())
        except (av.BlockingIOError, av.EOFError):
            return


class ToRGB:
    """Turns decoded frames of one video into RGB arrays: upright, in square pixels, SDR, over black.

    Attributes of frames may change from one to the next. Fields are not its business (`deinterlaced`).
    """

    def __init__(self, cover: tuple[int, int] | None = None, aspect: Fraction = Fraction(1)):
        """Scales to just cover `cover` (height, width), if that is given; `aspect` is that of a pixel."""
        self._cover, self._pictures_of = cover, PictureReader(aspect)
        self._reformatter, self._native = VideoReformatter(), VideoReformatter()
        self._filters: dict[tuple, _Filters] = {}
        self._num_laid = 0
        self._last: Pictures | None = None
        self._size = (0, 0)

    def __call__(self, frame: VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
        pictures = self._pictures_of(frame)
        if pictures is not self._last:
            self._last, self._size = pictures, self._stored_size(pictures)
        return pictures.orientation.upright(self._rgb(frame, pictures, self._size))

    def _stored_size(self, pictures: Pictures) -> tuple[int, int]:
        """Height and width before the picture is turned upright."""
        height, width = pictures.size
        if self._cover is not None:
            height, width = covering_size(pictures.size, self._cover)
            why = f"to cover {self._cover[1]} x {self._cover[0]}, {pictures.size[1]} x {pictures.size[0]} becomes"
            check_size(height, width, why)
        return pictures.orientation.swapped((height, width))

    def _rgb(self, frame: VideoFrame, pictures: Pictures, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        if pictures.alpha:
            # Before it is scaled: what is invisible must not bleed into what is seen.
            frame = self._native.reformat(frame, format="gbrap", interpolation=_SHRINK, threads=1)
            # RGB has no other range; what the source had would be taken for that of the filter.
            frame.color_range = ColorRange.JPEG
            frame = self._over_black(frame)
        if pictures.transfer == Transfer.SDR and pictures.gamut == Gamut.BT709:
            return self._reformatted(frame, size, "rgb24").to_ndarray()
        deep = self._reformatted(frame, size, "gbrp16le")
        table = (pictures.transfer, pictures.gamut, pictures.peak)
        mapped = self._mapped(deep, table).to_ndarray()
        return grey_levels()[mapped]

    def _reformatted(self, frame: VideoFrame, size: tuple[int, int], pixel_format: str) -> VideoFrame:
        return self._reformatter.reformat(
            frame,
            width=size[1],
            height=size[0],
            format=pixel_format,
            interpolation=interpolation(frame, size),
            threads=1,
        )

    def _over_black(self, frame: VideoFrame) -> VideoFrame:
        filters = self._filters_for(frame, "overlay")
        ground = VideoFrame.from_ndarray(np.zeros((frame.height, frame.width, 3), np.uint8), format="gbrp")
        self._num_laid += 1
        # The filter pairs frames by their times.
        for source, layer in zip(filters.sources, (ground, frame)):
            layer.pts, layer.time_base = self._num_laid, Fraction(1, 1000)
            source.push(layer)
        return cast(VideoFrame, filters.sink.pull())

    def _mapped(self, frame: VideoFrame, table: tuple[Transfer, Gamut, int]) -> VideoFrame:
        filters = self._filters_for(frame, "lut3d", table)
        frame.pts, frame.time_base = 0, Fraction(1, 1000)
        filters.sources[0].push(frame)
        return cast(VideoFrame, filters.sink.pull())

    def _filters_for(self, frame: VideoFrame, name: str, table: tuple[Transfer, Gamut, int] | None = None) -> _Filters:
        key = (name, table, *_layout(frame))
        if key not in self._filters:
            # One of each kind: a file may change at every frame.
            self._filters = {other: graph for other, graph in self._filters.items() if other[0] != name}
            self._filters[key] = _mapping(frame, table) if table else _overlay(frame)
        return self._filters[key]


def interpolation(frame: VideoFrame, size: tuple[int, int]) -> Interpolation:
    """By area where a frame becomes smaller, bicubic where it becomes larger."""
    return _SHRINK if size[0] <= frame.height and size[1] <= frame.width else _ENLARGE


def covering_size(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) with the aspect of `size` that covers `cover`, rounded to pixels."""
    scale = max(cover[0] / size[0], cover[1] / size[1])
    return max(cover[0], round(size[0] * scale)), max(cover[1], round(size[1] * scale))


def check_size(height: int, width: int, why: str) -> None:
    """Raises VideoError where a frame is larger than MAX_FRAME_PIXELS."""
    if height * width > MAX_FRAME_PIXELS:
        raise VideoError(f"{why} {width} x {height} pixels a frame, more than {MAX_FRAME_PIXELS}; scale it down")
