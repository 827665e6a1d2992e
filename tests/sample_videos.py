"""Small videos made on the spot: no test needs data from elsewhere."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame


def waves(seed: int, num_frames: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """A smooth moving colour pattern that differs with the seed and from frame to frame."""
    phase = np.random.default_rng(seed).uniform(0, 6, size=3)
    t, y, x = np.mgrid[:num_frames, :height, :width]
    channels = [128 + 90 * np.sin((x * (i + 1) + 3 * t) / 11 + y / 9 + phase[i]) for i in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def write(path: Path, video: np.ndarray, *, codec: str, pixels: str, fps: int = 10) -> None:
    """Writes a video in the container that the suffix of `path` names."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pixels
        for frame in video:
            container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode(None))


def write_sound(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_frames(
    path: Path, frames: list[VideoFrame], *, codec: str, times: list[int], clock: int = 1000, **fields
) -> None:
    """Writes frames shown at `times`, in ticks of 1 / clock seconds; `fields` are set on the encoder."""
    options = fields.pop("options", {})
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fields.pop("rate", 25), options=options)
        stream.height, stream.width = frames[0].height, frames[0].width
        stream.pix_fmt = frames[0].format.name
        stream.codec_context.time_base = Fraction(1, clock)
        for name, value in fields.items():
            setattr(stream.codec_context, name, value)
        for frame, time in zip(frames, times):
            frame.pts, frame.time_base = time, Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def yuv(video: np.ndarray, pixels: str = "yuv420p") -> list[VideoFrame]:
    return [VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels) for frame in video]


def filtered(frames: list[VideoFrame], *filters: tuple[str, str]) -> list[VideoFrame]:
    """What FFmpeg's own filters make of frames."""
    graph = Graph()
    source = graph.add_buffer(
        template=None,
        width=frames[0].width,
        height=frames[0].height,
        format=frames[0].format,
        time_base=Fraction(1, 1000),
    )
    nodes = [source, *(graph.add(name, arguments) for name, arguments in filters), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    made = []
    for frame in [*frames, None]:
        graph.push(frame)
        while True:
            try:
                made.append(graph.vpull())
            except (av.BlockingIOError, av.EOFError):
                break
    return made
