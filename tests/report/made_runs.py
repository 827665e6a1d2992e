"""Folders of runs as training leaves them, written by hand: what a report reads, without a step being trained."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toys import SMALL_DENOISE, untrained

from dit_video.config import components
from dit_video.evaluation.card import make_card, write_card
from dit_video.evaluation.distance import Distance
from dit_video.evaluation.frechet import FrechetTerms
from dit_video.evaluation.uncertainty import Interval
from dit_video.experiment import Experiment
from dit_video.video.encode import encode_mp4

EXPERIMENT = untrained(SMALL_DENOISE)
LEVELS = (-4, 0, 4)


def write_run(
    folder: Path, *, experiment: Experiment = EXPERIMENT, seed: int = 0, num_steps: int = 60, evaluations: int = 3
) -> Path:
    """A run with curves, evaluations, samples at each of these, a card, goodput and an event."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    record = {
        "fingerprint": "0123456789abcdef",
        "overrides": [],
        "started": "2026-01-02T03:04:05+0000",
        "environment": {"devices": "1 x cpu"},
        "experiment": components.record(experiment),
    }
    (folder / "experiment.json").write_text(json.dumps(record))
    steps = [
        {"step": s, "loss": 1 / s + 0.01 * rng.random(), "grad_norm": rng.random()} for s in range(1, num_steps + 1)
    ]
    judged = [round(num_steps * part / evaluations) for part in range(1, evaluations + 1)]
    errors = [
        {"step": s, "evaluation": "held-out error", "x_0_error": 1 / s}
        | {f"x_0_error/logsnr_{level:+g}": 1 / s + level**2 for level in LEVELS}
        for s in judged
    ]
    rates = [{"step": s, "rates": {"clips_per_second": 10.0 + rng.random(), "wall_time": 1.8e9 + s}} for s in judged]
    write_lines(folder / "metrics.jsonl", [*steps, *errors, *rates])
    write_lines(
        folder / "goodput.jsonl", [{"session": 1, "step": num_steps, "seconds": {"step": 60.0, "compile": 20.0}}]
    )
    event = {"step": 5, "batch": 5, "kind": "spike", "done": "noted", "what": ["loss 9"]}
    write_lines(folder / "events.jsonl", [event])
    for step in judged:
        write_sample(folder, step, seed)
    write_fvd(folder / "evaluation" / f"step_{num_steps:07d}_ema_fvd_n32.json", step=num_steps)
    return folder


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_sample(folder: Path, step: int, seed: int, name: str = "samples") -> None:
    """A video of one grey, which says at which step and by which run it was made."""
    grey = (step * 7 + seed * 31) % 200 + 20
    path = folder / "samples" / f"step_{step:07d}_{name}.mp4"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(grey_clip(grey))


@functools.cache
def grey_clip(grey: int) -> bytes:
    return encode_mp4(np.full((8, 32, 64, 3), grey, np.uint8), 8.0)


def write_fvd(path: Path, *, step: int, value: float = 260.0, num_clips: int = 32, notes: Sequence[str] = ()) -> None:
    """A card with all its yardsticks."""
    card = make_card(
        metric="FVD",
        distance=distance(value),
        protocol={"num_clips": num_clips, "num_frames": 9, "resize": "tf1", "pairs": False, "content": "c" * 64},
        subject={"run": "dit", "step": step, "weights": "ema"},
        references={},
        notes=notes,
    )
    card["yardsticks"] = {
        "training clips": distance(150.0).as_json(),
        "training clips, first frame held still": distance(500.0).as_json(),
    }
    card["companions"] = {"samples, frames shuffled": distance(600.0).as_json()}
    card["measures"] = {"novelty": 0.97}
    path.parent.mkdir(exist_ok=True)
    write_card(path, card)


def distance(value: float) -> Distance:
    return Distance(terms=FrechetTerms(value, 0.0), kernel=0.1, interval=Interval(0.8 * value, 1.2 * value), limit=None)
