"""The text-to-video presets train: the functions of their files, at the smallest size, on captions of moving digits."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import small_mesh

from dit_video.config.components import diff
from dit_video.distributed.sharding import place
from dit_video.experiment import load
from dit_video.run.checks import check_fields
from dit_video.run.open_run import program_of

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def test_at_the_smallest_size_both_are_one():
    """So training either trains the functions of both."""
    one, other = (load(str(EXPERIMENTS / f"{name}.py:tiny")) for name in ("video_1b", "video_14b"))
    assert diff(one, other).keys() == {"optimizer.learning_rate"}


@pytest.mark.slow
def test_a_preset_trains_on_captioned_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load(str(EXPERIMENTS / "video_1b.py:tiny"))
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, cache=None))
    mesh = small_mesh()
    check_fields(experiment)
    program = program_of(experiment, mesh)
    codec = jax.jit(experiment.task.blank)(jax.random.key(0))
    state, losses = program.init(0), []
    with contextlib.closing(experiment.data.train(0, 0)) as batches:
        for _ in range(2):
            batch = next(batches)
            assert {bytes(row[row > 0][-5:]) for row in batch.signals["caption"]} & {b"right", b" left"}
            state, metrics = program.step(state, codec, place(batch, mesh), 0)
            losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
