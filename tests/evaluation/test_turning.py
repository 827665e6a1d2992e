"""Turning is judged by the way a picture goes: on the corridor, and on worlds that turn right, wrong or never."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import FitLines, judged_by, small_mesh, untrained

from dit_video.data.batch import Batch
from dit_video.data.signals import Actions
from dit_video.evaluation.turning import Turning, column_shift
from dit_video.nn.module import define, params_of
from dit_video.tasks.media import Video
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ROLL_OUT, Function
from dit_video.worlds.corridor import FORWARD, TURN_LEFT, TURN_RIGHT, Corridor

SCENE = np.random.default_rng(0).integers(0, 256, (8, 64, 3), np.uint8)


def seen(position: int) -> np.ndarray:
    """Sixteen columns of a scene that has no end; turning right is a step along it."""
    return np.take(SCENE, np.arange(position, position + 16) % 64, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panorama(FitLines):
    """A world that is turned by actions 1 (left) and 2 (right), by `way` times three columns; after a while not."""

    way: int = 1
    until: int = 10_000

    def functions(self):
        return {ROLL_OUT: Function(self.rolled, Video)}

    def rolled(self, model, frozen, batch, keys, shape):
        known, actions = jnp.asarray(batch.video), jnp.asarray(batch.signals["action"])
        steps = (
            jnp.where(jnp.arange(actions.shape[1]) < self.until, self.way, 0)
            * 3
            * jnp.select([actions == 1, actions == 2], [-1, 1], 0)
        )
        at = 3 + jnp.cumsum(steps.at[:, : known.shape[1]].set(0), axis=1)
        columns = (at[..., None] + jnp.arange(16)) % 64
        made = jnp.moveaxis(jnp.take(jnp.asarray(SCENE), columns, axis=1), 0, 2)
        return jnp.concatenate([known, made[:, known.shape[1] :]], axis=1)


def judged(task) -> dict[str, float]:
    subject = Subject(task, define(task.init), None, small_mesh(), {})
    subject = subject.with_weights(params_of(task.init(jax.random.key(0))), step=3, ema=True)
    actions = np.array([[0, 0, 1, 2, 2, 0], [0, 0, 2, 1, 1, 2]], np.int32)
    at = 3 + np.cumsum(3 * np.select([actions == 1, actions == 2], [-1, 1], 0), axis=1)
    video = np.stack([[seen(position) for position in row] for row in at])
    turning = Turning(every=1, num_clips=2, batch_size=2, num_known=2, left=1, right=2, num_frames=40, num_last=10)
    return dict(turning(subject, judged_by(Batch(video=video, signals={"action": actions})), 0).scalars)


def test_the_share_of_turns_that_go_the_right_way():
    assert judged(Panorama()) == {"near": 1, "end": 1, "true": 1}
    assert judged(Panorama(way=-1)) == {"near": 0, "end": 0, "true": 1}
    assert judged(Panorama(until=20)) == {"near": 1, "end": 0, "true": 1}


@pytest.mark.parametrize("shift", [-6, -1, 0, 4])
def test_a_shift_is_found_exactly(shift):
    before, after = (seen(position) for position in (30, 30 - shift))
    assert column_shift(before, after) == shift
    np.testing.assert_array_equal(column_shift(np.stack([before] * 2), np.stack([after] * 2)), shift)


def test_true_turns_of_the_corridor_are_recognised():
    rng, right, turns = np.random.default_rng(0), 0, 0
    for seed in range(6):
        world = Corridor()
        before = world.reset(seed).frame
        for action in rng.choice([TURN_LEFT, TURN_RIGHT, FORWARD], 40, p=[0.3, 0.3, 0.4]):
            after = world.step(action).frame
            if action != FORWARD:
                shift = column_shift(before, after)
                right += shift > 0 if action == TURN_LEFT else shift < 0
                turns += 1
            before = after
    assert turns > 100
    assert right / turns > 0.99


def test_actions_that_are_not_there_are_refused():
    data = untrained(Panorama()).data
    named = Actions(names=("noop", "left", "right"), num_frames=5)
    data = dataclasses.replace(data, signals={"action": named})
    with pytest.raises(ValueError, match=r"right=3: must be numbers of the 3 actions \(noop, left, right\)"):
        Turning(every=1, num_known=2, left=1, right=3).check(Panorama(), data)
    with pytest.raises(ValueError, match="num_known=4 and num_last=100 together"):
        Turning(every=1, left=1, right=2, num_frames=90)
