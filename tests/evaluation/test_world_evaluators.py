"""Evaluators of worlds on one whose frames are a known function of actions: what they say has a closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import FitLines, judged_by, small_mesh, untrained

from dit_video.data.batch import Batch
from dit_video.data.signals import Actions
from dit_video.evaluation.worlds import ActionResponse, Drift, statistics
from dit_video.nn.module import define, params_of
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ROLL_OUT, VALIDATE, Function

LEVEL = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counter(FitLines):
    """A world of one grey level, to which an action adds; it makes every frame `off` levels too bright."""

    off: int = 0

    def functions(self):
        return {ROLL_OUT: Function(self.rolled, Video), VALIDATE: Function(self.validated)}

    def rolled(self, model, frozen, batch, keys, shape):
        known, actions = jnp.asarray(batch.video), jnp.asarray(batch.signals["action"])
        num_known = known.shape[1]
        added = jnp.cumsum(jnp.where(actions < 0, 0, actions)[:, num_known:], axis=1)
        made = known[:, -1:].astype(jnp.int32) + added[:, :, None, None, None] + self.off
        return jnp.concatenate([known, made.astype(jnp.uint8)], axis=1)

    def validated(self, model, frozen, batch, keys, shape):
        """Three times as large where actions are not those of `clips`; the rest is noise."""
        actions = jnp.asarray(batch.signals["action"])
        wrong = jnp.any(actions[:, 1:] != actions[:, 1:2], axis=1) | (
            actions[:, 1] != batch.video[:, 1, 0, 0, 0] - LEVEL
        )
        return {"error": jax.vmap(jax.random.uniform)(keys) * jnp.where(wrong, 3.0, 1.0)}


def subject_of(task) -> Subject:
    subject = Subject(task, define(task.init), None, small_mesh(), {})
    return subject.with_weights(params_of(task.init(jax.random.key(0))), step=3, ema=True)


def clips() -> Batch:
    """Four clips of eight frames; row i counts by i."""
    actions = np.repeat(np.arange(4, dtype=np.int32)[:, None], 8, axis=1)
    actions[:, 0] = 0
    levels = LEVEL + np.cumsum(actions, axis=1)
    video = np.broadcast_to(levels[:, :, None, None, None], (4, 8, 4, 4, 3)).astype(np.uint8)
    return Batch(video=video, signals={"action": actions})


def decibels(errors) -> float:
    """PSNR of frames that are off by such errors, one without any as if one value were off by one."""
    squares = np.maximum(np.square(np.asarray(errors, float)), 1 / (4 * 4 * 3))
    return float(np.mean(10 * np.log10(255**2 / squares)))


def test_the_response_to_actions_is_what_it_is():
    settings = {"num_clips": 4, "batch_size": 2, "num_known": 2, "horizons": (1, 4)}
    report = ActionResponse(every=1, **settings)(subject_of(Counter(off=2)), judged_by(clips()), 0)
    own = np.arange(4)
    other = np.array([1, 0, 3, 2])  # of the batch of two
    for h in (1, 4):
        assert report.scalars[f"psnr/{h}"] == pytest.approx(decibels([2] * 4), abs=1e-3)
        assert report.scalars[f"copy/{h}"] == pytest.approx(decibels(own * h), abs=1e-3)
        assert report.scalars[f"withheld/{h}"] == pytest.approx(decibels(own * h - 2), abs=1e-3)
        of_others = decibels((other - own) * h + 2)
        assert report.scalars[f"dpsnr/{h}"] == pytest.approx(decibels([2] * 4) - of_others, abs=1e-3)
    assert report.media["roll-outs"].frames.shape[0] == 8


def test_both_losses_of_the_ratio_have_the_same_noise():
    response = ActionResponse(every=1, num_clips=4, batch_size=4, num_known=2, horizons=(1,))
    assert response(subject_of(Counter()), judged_by(clips()), 0).scalars["loss_ratio"] == pytest.approx(3, rel=1e-5)


def test_what_does_not_drift_has_ratios_of_one():
    settings = {"num_clips": 4, "batch_size": 4, "num_known": 2, "num_frames": 22, "num_last": 8}
    report = Drift(every=1, **settings)(subject_of(Counter()), judged_by(clips()), 0)
    # By the actions of all clips in turn it counts on by their mean.
    assert report.scalars["motion"] == pytest.approx(1, rel=0.2)
    assert report.scalars["mean"] > 1
    assert report.media["end"].frames.shape[0] == 8


def test_statistics_are_those_of_a_moving_ramp():
    ramp = np.broadcast_to(np.arange(8)[None, None, None, :, None] * 4 + np.arange(3)[None, :, None, None, None] * 2,
                           (1, 3, 8, 8, 3)).astype(np.uint8)  # fmt: skip
    found = {name: float(values[0]) for name, values in statistics(ramp).items()}
    assert found == pytest.approx({"mean": 16, "contrast": 4 * np.arange(8).std(), "sharpness": 2, "motion": 2})


def test_clips_that_are_too_short_or_without_actions_are_refused():
    experiment = untrained(Counter())
    response = ActionResponse(every=1, num_known=2, horizons=(1, 4))
    with pytest.raises(ValueError, match=r"add config.data.signals.action"):
        response.check(Counter(), experiment.data)
    data = dataclasses.replace(experiment.data, signals={"action": Actions(size=1, num_frames=5)})
    with pytest.raises(ValueError, match=r"with 4 frames after them clips must have 6, .*num_frames=5"):
        response.check(Counter(), data)
    with pytest.raises(ValueError, match="'roll-out'"):
        response.check(FitLines(), data)
    with pytest.raises(ValueError, match="num_known=4 and num_last=100 together"):
        Drift(every=1, num_frames=50)
