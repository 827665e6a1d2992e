"""Corruption benchmark of checkpoints: bits flipped in every kind of file, and files cut short or deleted.

What is restored is compared bit for bit with what was saved. *Detected*: refused as damaged. *Harmless*: restored as
it was, for not every byte of a file bears on what is read. *Silent*: restored as something else, a fault of ours.
"""

import gc
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.checkpoint.checkpoints import Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.folder import FOLDER
from dit_video.progress import counted
from dit_video.training.step import TrainState

STEP = 2
DETECTED, HARMLESS, SILENT = "detected", "harmless", "silent"
HEADS = ("file", "flips", DETECTED, HARMLESS, SILENT, "cut or gone", DETECTED, HARMLESS, SILENT)

# The kind of a file by a part of its path, the first that fits.
KINDS = (
    ("arrays and their index (d/)", "/d/"),
    ("head of the index (manifest.ocdbt)", "manifest.ocdbt"),
    ("array_metadatas", "array_metadatas"),
    ("_sharding", "_sharding"),
    ("experiment, data position, digests (_CHECKPOINT_METADATA)", "_CHECKPOINT_METADATA"),
    ("names of arrays (_METADATA)", "_METADATA"),
    ("commit_success.txt", "commit_success.txt"),
)


def measure(num_flips: int, seed: int = 0) -> dict[str, Any]:
    """Counts by kind of file: of `num_flips` flipped bits in each kind, and of five cuts of each file."""
    endings = {kind: {"flips": Counter(), "cuts": Counter()} for kind, _ in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        state = example_state()
        with Checkpoints(Path(folder), experiment={"seed": 3}) as checkpoints:
            checkpoints.save(STEP, state, next_batch=20)
            checkpoints.wait()
            step = Path(folder) / FOLDER / str(STEP)
            by_kind: dict[str, list[Path]] = {kind: [] for kind, _ in KINDS}
            for path in sorted(path for path in step.rglob("*") if path.is_file()):
                by_kind[_kind(path)].append(path)
            for kind, files in counted(by_kind.items(), "checkpoints", total=len(by_kind), unit="kinds of files"):
                rng = random.Random(f"{seed} {kind}")
                gc.collect()
                gc.freeze()  # garbage is collected after every damaged read
                for _ in range(num_flips):
                    file = rng.choice(files)
                    ending = _ending(checkpoints, state, file, lambda data, r=rng: _flipped(data, r))
                    endings[kind]["flips"][ending] += 1
                for file in files:
                    for cut in _cuts(file, rng):
                        endings[kind]["cuts"][_ending(checkpoints, state, file, lambda data, c=cut: data[:c])] += 1
                    endings[kind]["cuts"][_ending(checkpoints, state, file, None)] += 1
            gc.unfreeze()
    return {kind: {way: dict(counts) for way, counts in ways.items()} for kind, ways in endings.items()}


def rows(measured: dict[str, Any]) -> list[list[object]]:
    lines = []
    for kind, ways in measured.items():
        cells: list[object] = [kind]
        for way in ("flips", "cuts"):
            counts = ways[way]
            cells += [sum(counts.values()), *(counts.get(ending, 0) for ending in (DETECTED, HARMLESS, SILENT))]
        lines.append(cells)
    return lines


def num_silent(measured: dict[str, Any]) -> int:
    return sum(counts.get(SILENT, 0) for ways in measured.values() for counts in ways.values())


def example_state() -> TrainState:
    """A state of a few small arrays, as a checkpoint holds."""
    numbers = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    return TrainState(
        step=jnp.int32(STEP),
        params={"kernel": jnp.asarray(numbers[0]), "bias": jnp.arange(3.0)},
        ema={"kernel": jnp.asarray(numbers[1]), "bias": jnp.arange(3.0) + 1},
        opt_state=({"count": jnp.int32(7)}, {"kernel": jnp.asarray(numbers[2])}),
    )


def _kind(path: Path) -> str:
    return next(kind for kind, part in KINDS if part in str(path))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cuts(file: Path, rng: random.Random) -> Iterator[int]:
    size = file.stat().st_size
    yield from (0, size // 2, size - 1, rng.randrange(size))


def _ending(checkpoints: Checkpoints, state: TrainState, file: Path, harm: Callable[[bytes], bytes] | None) -> str:
    """Outcome of restoring while `file` is damaged, or deleted where `harm` is None; the file is put back after."""
    whole = file.read_bytes()
    if harm is None:
        file.unlink()
    else:
        file.write_bytes(harm(whole))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    try:
        saved = checkpoints.restore(shapes, STEP)
    except DamagedCheckpoint:
        return DETECTED
    finally:
        file.write_bytes(whole)
    same = jax.tree.structure(saved.state) == jax.tree.structure(state) and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(saved.state), jax.tree.leaves(state))
    )
    same_metadata = (saved.step, saved.next_batch, saved.experiment) == (STEP, 20, {"seed": 3})
    return HARMLESS if same and same_metadata else SILENT
