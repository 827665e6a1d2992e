"""Actions of frames as a network takes them: whose frame they are, and what stands for none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.dit.action_condition import ContinuousActions, DiscreteActions
from dit_video.dit.dit import DiTConfig
from dit_video.dit.latte import LatteConfig

KEYS = DiscreteActions(num_actions=3, frames_per_latent=4)
JOINTS = ContinuousActions(action_size=2, frames_per_latent=2)


def unknown(condition):
    """Two clips of nine frames of which no action is known."""
    return {"action": np.broadcast_to(condition.none, (2, 9, *condition.none.shape))}


def test_a_latent_frame_has_the_actions_of_its_frames():
    """The first is of one frame, which has one; 3 stands for none."""
    actions = np.array([[0, 1, 2, 0, 1, 2, 2, -1, 0]], np.int32)
    expected = [[[3, 3, 3, 0], [1, 2, 0, 1], [2, 2, 3, 0]]]
    np.testing.assert_array_equal(KEYS.read({"action": actions}), expected)


def test_a_stream_goes_on_with_the_groups_of_the_whole():
    actions = np.array([[0, 1, 2, 0, 1, 2, 2, -1, 0]], np.int32)
    parts = [KEYS.grouped(actions[:, :1], first=True), KEYS.grouped(actions[:, 1:], first=False)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), KEYS.read({"action": actions}))


def test_vectors_are_grouped_alike():
    actions = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    expected = [[[[np.nan, np.nan], [0, 1]], [[2, 3], [4, 5]]]]
    np.testing.assert_array_equal(JOINTS.read({"action": actions}), expected)


@pytest.mark.parametrize("condition", [KEYS, JOINTS])
def test_examples_are_of_no_known_action_and_random_ones_are_known(condition):
    signals = unknown(condition)
    read, random = condition.read(signals), condition.random(np.random.default_rng(0), signals)
    np.testing.assert_array_equal(read, condition.empty(read))
    assert len(np.unique(np.asarray(random["action"]))) >= 3
    condition.check(random)
    assert len(condition.inputs()) == 1


@pytest.mark.parametrize("condition", [KEYS, JOINTS])
def test_a_vector_for_each_latent_frame_is_that_of_its_own_actions(condition):
    embed = condition.label_embedding(8, rngs=nnx.Rngs(0))
    cond = condition.read(condition.random(np.random.default_rng(0), unknown(condition)))
    vectors, null = (np.asarray(jax.jit(lambda e, c: e(c))(embed, c)) for c in (cond, condition.empty(cond)))
    assert vectors.shape == (*cond.shape[:2], 8)
    assert np.isfinite(null).all()
    assert (null == null[0, 0]).all()
    assert (np.abs(vectors - null).max(-1) > 0).all()
    alone = jax.jit(lambda e, c: e(c))(embed, cond[1:, 1:2])
    np.testing.assert_allclose(alone, vectors[1:, 1:2], atol=1e-6)


def test_the_order_of_actions_within_a_latent_frame_counts():
    embed = KEYS.label_embedding(8, rngs=nnx.Rngs(0))
    one, other = (embed(jnp.array([[row]])) for row in ([0, 1, 2, 0], [1, 0, 2, 0]))
    assert np.abs(one - other).max() > 1e-3


def test_an_action_beyond_the_table_is_not_a_number_and_refused_by_both_numbers():
    embed = KEYS.label_embedding(8, rngs=nnx.Rngs(0))
    assert np.isnan(embed(KEYS.read({"action": np.array([[3]])}))).all()
    with pytest.raises(ValueError, match="action 3: must be a number under num_actions=3"):
        KEYS.check({"action": np.array([[0, 3]])})


def test_actions_that_fill_no_latent_frames_are_refused():
    with pytest.raises(ValueError, match=r"actions of 8 frames; with .*frames_per_latent=4 there must be 1 \+ s k"):
        KEYS.read({"action": np.zeros((1, 8), np.int32)})
    with pytest.raises(ValueError, match="action_size=2"):
        JOINTS.read({"action": np.zeros((1, 3, 4), np.float32)})
    with pytest.raises(ValueError, match="frames_per_latent=4: the codec puts 2 frames into a latent frame"):
        KEYS.check_frames(2)


@pytest.mark.parametrize("network", [DiTConfig, LatteConfig])
def test_a_network_that_has_no_value_for_each_frame_refuses_actions(network):
    config = network(hidden_size=32, depth=2, num_heads=2, patch_size=(2 if network is DiTConfig else 1, 1, 1))
    with pytest.raises(ValueError, match="DiscreteActions: has a value for each frame"):
        config.check_condition(KEYS, frames_per_latent=4)


def test_an_action_has_one_number_at_least():
    assert ContinuousActions(action_size=1, frames_per_latent=2).none.shape == (1,)
    with pytest.raises(ValueError, match="action_size=0: must be at least 1"):
        ContinuousActions(action_size=0, frames_per_latent=2)
