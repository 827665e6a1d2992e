"""Fuzzing cases: good files of every kind that may be untrusted, and thousands of ways to corrupt them.

A case is a pure function of its family and its number: `Reader.make(case)` writes the file, `Reader.read` reads it as
the package does. Used by fault_bench.py and, for a few cases of each, by the tests.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import ml_dtypes
import numpy as np
from av.video.frame import VideoFrame

from dit_video import experiment as experiments
from dit_video.config.components import to_json
from dit_video.data.latent_cache import CachedExamples, read_cache_manifest, write_latent_cache
from dit_video.data.record import Clip, Split
from dit_video.data.sources import VideoSet
from dit_video.ingest.decoding_process import MAX_PROCESS_BYTES
from dit_video.ingest.ingest import ingest
from dit_video.ingest.probe import probe, storable
from dit_video.ingest.transcoding import Transcoding
from dit_video.video.decode import VideoError
from dit_video.weights.files import read_tensors, write_safetensors

ROOT = Path(__file__).parent.parent
# Numbers at which readers of headers go wrong: ends of types, and what claims much.
_NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, 0.5, float("nan"), float("inf")),
    *("", "x", "../../x", "/etc/passwd", "\x1b[2J", "\ud800", "None", "x" * 100_000, "dit_video.experiment.Experiment"),
    *([], {}, [[]], {"class": "os.system"}, {"class": 3}, {"class": "dit_video.data.sources.VideoSet"}, [0] * 100_000),
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One family in a folder of its own: writes the file of a case, and reads it."""

    make: Callable[[int], Path]
    read: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Files of one kind.

    Attributes:
        prepare: makes the good files in a folder.
        num_bytes: of memory that reading may take, the package included.
    """

    prepare: Callable[[Path], Reader]
    num_bytes: int


def spoiled(data: bytes, rng: np.random.Generator, *other_files: bytes) -> bytes:
    """Bytes with one to three of: flipped bits, cut off, a piece gone, doubled or from elsewhere, another number."""
    for _ in range(rng.integers(1, 4)):
        data = _spoil_once(bytearray(data or b"x"), rng, other_files)
    return data


def _spoil_once(data: bytearray, rng: np.random.Generator, other_files: tuple[bytes, ...]) -> bytes:
    # Half of all places are in the first or last kilobyte, where headers and indices are.
    near = min(len(data), 1024)
    low, high = [(0, len(data)), (0, len(data)), (0, near), (len(data) - near, len(data))][rng.integers(4)]
    start = int(rng.integers(low, high))
    stop = start + int(rng.integers(1, 200))
    match rng.integers(6):
        case 0:
            for place in rng.integers(low, high, size=rng.integers(1, 65)):
                data[place] ^= 1 << rng.integers(8)
        case 1:
            del data[start:]
        case 2:
            del data[start:stop]
        case 3:
            data[start:start] = data[start:stop] * int(rng.integers(1, 50))
        case 4:
            other = other_files[rng.integers(len(other_files))] if other_files else bytes(rng.bytes(200))
            begin = int(rng.integers(len(other)))
            data[start:stop] = other[begin : begin + stop - start]
        case _:
            number = int(rng.choice(_NUMBERS)).to_bytes(4, "big" if rng.integers(2) else "little")
            data[start : start + 4] = number
    return bytes(data)


def spoiled_json(content: Any, rng: np.random.Generator) -> bytes:
    """JSON text with wrong values in wrong places, nested too deep, or spoiled as bytes."""
    if rng.random() < 0.2:
        return spoiled(json.dumps(content).encode(), rng)
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        places = list(_places(content))
        parent, key = places[rng.integers(len(places))]
        match rng.integers(5):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[str(rng.choice(["x", "class", "file", "", "__class__"]))] = parent[key]
            case 2:
                # A node of the file itself, somewhere else: the right type for another place.
                other, name = places[rng.integers(len(places))]
                parent[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else None
            case _:
                parent[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
        if not content:
            break
    text = json.dumps(content)
    if rng.random() < 0.05:
        depth = int(10 ** rng.uniform(1, 5))
        inner, outer = ("[", "]") if rng.integers(2) else ('{"class":', "}")
        text = text.replace(":", ":" + inner * depth + "0" + outer * depth + ",", 1)
    return text.encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) below a value."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield node, key
            if isinstance(value, dict | list):
                waiting.append(value)


def moving_bars(seed: int) -> np.ndarray:
    """uint8 [12 32 48 3]; each seed gives other colours."""
    t, y, x = np.mgrid[:12, :32, :48]
    return np.stack([(x * (seed + 2 + c) + y * c + t * 9) % 256 for c in range(3)], axis=-1).astype(np.uint8)


_KINDS = (
    *(("mp4", "libx264", "yuv420p"), ("mov", "mpeg4", "yuv420p"), ("mkv", "libx264", "yuv444p")),
    *(("webm", "libvpx-vp9", "yuv420p"), ("avi", "mpeg4", "yuv420p"), ("mpg", "mpeg2video", "yuv420p")),
    *(("ts", "libx264", "yuv420p"), ("gif", "gif", "rgb8"), ("flv", "flv1", "yuv420p")),
)


def _videos(folder: Path) -> Reader:
    good = {}
    for number, (suffix, codec, pixels) in enumerate(_KINDS):
        path = folder / f"good.{suffix}"
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
            for frame in moving_bars(number):
                container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)))
            container.mux(stream.encode(None))
        good[suffix] = path.read_bytes()

    def make(case: int) -> Path:
        rng = np.random.default_rng((0, case))
        suffix = list(good)[case % len(good)]
        path = folder / f"case.{suffix}"
        path.write_bytes(spoiled(good[suffix], rng, *good.values()))
        return path

    def read(path: Path) -> None:
        # As a file of a folder to judge, and as one to ingest; both name it beside the reason.
        refused = None
        for examine in (probe, lambda path: storable(path, folder / "stored.mp4", None)):
            try:
                examine(path)
            except VideoError as error:
                refused = error
        if refused is not None:
            raise ValueError(f"{path}: {refused}")

    return Reader(make=make, read=read)


def _safetensors(folder: Path) -> Reader:
    good = folder / "good.safetensors"
    types = (np.float32, np.float16, np.int64, np.uint8, np.bool_, ml_dtypes.bfloat16)
    tensors = {f"blocks.{i}.kernel": np.arange(6 * i).reshape(i, 6).astype(t) for i, t in enumerate(types)}
    write_safetensors(tensors, good, metadata={"source": "x"})
    data = good.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def make(case: int) -> Path:
        rng = np.random.default_rng((1, case))
        path = folder / "case.safetensors"
        if case % 2:
            path.write_bytes(spoiled(data, rng))
        else:
            # A header whose length is right, so that what it says is reached.
            text = spoiled_json(header, rng)
            path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return path

    return Reader(make=make, read=lambda path: _discard(read_tensors(path)))


def _experiments(folder: Path) -> Reader:
    files = sorted((ROOT / "experiments").glob("*.py"))
    good = [{"experiment": to_json(experiments.load(str(path)))} for path in files]
    path = folder / "experiment.json"

    def make(case: int) -> Path:
        path.write_bytes(spoiled_json(good[case % len(good)], np.random.default_rng((2, case))))
        return path

    return Reader(make=make, read=lambda path: _discard(experiments.read(path)))


def small_sets(folder: Path) -> tuple[Path, Path]:
    """A video set and a latent cache, both small."""
    source = folder / "videos"
    for number in range(4):
        path = source / ("cat" if number % 2 else "dog") / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for frame in moving_bars(number):
                container.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    ingest([source], folder / "set", transcoding=Transcoding(num_workers=1))
    moments = np.arange(2 * 4 * 4 * 8, dtype=np.float32).reshape(2, 4, 4, 8)
    clips = [Clip(key=str(i), start=0, moments=moments + i, label=i, caption="x", fps=25.0) for i in range(3)]
    write_latent_cache(
        folder / "cache",
        {split: clips for split in Split},
        class_names=("cat", "dog"),
        split_digests={split: "0" * 64 for split in Split},
        provenance={"vae": "0" * 64},
    )
    return folder / "set", folder / "cache"


def _read_set(path: Path) -> None:
    """All that a run reads of the set or cache in which `path` lies."""
    directory = path.parent
    if directory.name.startswith("cache"):
        read_cache_manifest(directory)
        for split in Split:
            _discard(list(CachedExamples(directory, split)))
    else:
        source = VideoSet(directory=str(directory))
        source.info()
        for split in Split:
            _discard(list(source.open(split)))


def _spoiled_sets(pattern: str, spoil: Callable[[bytes, np.random.Generator], bytes], seed: int) -> Callable:
    def prepare(folder: Path) -> Reader:
        originals = small_sets(folder)
        files = [file for original in originals for file in sorted(original.glob(pattern)) if file.is_file()]

        def make(case: int) -> Path:
            file = files[case % len(files)]
            copied = folder / f"{file.parent.name}-case"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(file.parent, copied)
            path = copied / file.name
            path.write_bytes(spoil(file.read_bytes(), np.random.default_rng((seed, case))))
            return path

        return Reader(make=make, read=_read_set)

    return prepare


def _discard(value: Any) -> None:
    del value


FAMILIES = {
    "video": Family(prepare=_videos, num_bytes=MAX_PROCESS_BYTES),
    "safetensors": Family(prepare=_safetensors, num_bytes=1 << 30),
    "experiment": Family(prepare=_experiments, num_bytes=2 << 30),
    "manifest": Family(
        prepare=_spoiled_sets("*.json", lambda data, rng: spoiled_json(json.loads(data), rng), 3), num_bytes=2 << 30
    ),
    "records": Family(prepare=_spoiled_sets("*array_record*", spoiled, 4), num_bytes=2 << 30),
}
