"""A DiT that is causal over frames, with an action for each: what depends on what, and that a cache changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import small_mesh

from dit_video.distributed.sharding import shard_params
from dit_video.dit.action_condition import DiscreteActions
from dit_video.dit.dit import DiTConfig
from dit_video.dit.network import CausalFrames
from dit_video.nn.module import define, params_of

FRAMES, WINDOW = 5, 3
CONFIG = DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 2, 2), causal=CausalFrames(window=WINDOW))
CONDITION = DiscreteActions(num_actions=3)
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def build(key):
    return CONFIG.build(4, CONDITION, dtype=jnp.float32, rngs=nnx.Rngs(key))


DEFINITION = define(build)
output = jax.jit(lambda params, *seen: DEFINITION.bind(params).output(*seen).prediction)


@pytest.fixture(scope="module")
def params():
    """No parameter is zero: a fresh DiT is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    fresh = jax.jit(lambda key: params_of(build(key)))(jax.random.key(0))
    return {n: p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for n, p in sorted(fresh.items())}


@pytest.fixture(scope="module")
def seen():
    """x_t, t and actions of two clips."""
    of_x, of_t = jax.random.split(jax.random.key(1))
    actions = CONDITION.read({"action": np.array([[-1, 0, 1, 2, 0], [2, 1, 1, 0, 2]], np.int32)})
    return jax.random.normal(of_x, (2, FRAMES, 4, 4, 4)), jax.random.uniform(of_t, (2, FRAMES)), actions


@pytest.fixture(scope="module")
def expected(params, seen):
    return np.asarray(output(params, *seen))


def changed(params, seen, expected) -> list[bool]:
    """Which frames of the first clip differ in a bit; the other clip never does."""
    actual = np.asarray(output(params, *seen))
    np.testing.assert_array_equal(actual[1], expected[1])
    return (actual[0] != expected[0]).any(axis=(1, 2, 3)).tolist()


def test_an_action_changes_nothing_before_its_frame(params, seen, expected):
    x_t, t, actions = seen
    assert changed(params, (x_t, t, actions.at[0, 2].set(0)), expected) == [False, False, True, True, True]


def test_a_frame_and_its_level_change_nothing_before_it(params, seen, expected):
    x_t, t, actions = seen
    assert changed(params, (x_t.at[0, 2, 3, 3].add(1), t, actions), expected) == [False, False, True, True, True]
    assert changed(params, (x_t, t.at[0, 3].set(0.5), actions), expected) == [False, False, False, True, True]


def test_blocks_one_upon_the_other_see_a_window_further_each(params, seen, expected):
    x_t, t, actions = seen
    # Of two layers with a window of 3, frame 4 sees frame 0 by way of frame 2.
    assert all(changed(params, (x_t.at[0, 0].add(1), t, actions), expected))
    longer = [jnp.concatenate([x, x[:, :3]], axis=1) for x in seen]
    other = [longer[0].at[0, 0].add(1), *longer[1:]]
    np.testing.assert_array_equal(output(params, *longer)[:, 5:], output(params, *other)[:, 5:])


@functools.partial(jax.jit, static_argnames="at_once")
def with_a_cache(params, x_t, t, actions, at_once):
    """Outputs of so many frames at a time, each written twice to the cache, for the last write counts."""
    model = DEFINITION.bind(params)
    blocks = model.unstacked()

    def go_on(carry, frames):
        first, cache = carry
        x_t, *rest = (jnp.moveaxis(x, 0, 1) for x in frames)
        _, cache = model.cached(blocks, -x_t, *rest, first, cache)
        out, cache = model.cached(blocks, x_t, *rest, first, cache)
        return (first + at_once, cache), out.prediction

    parts = [jnp.moveaxis(x, 1, 0).reshape(-1, at_once, len(x), *x.shape[2:]) for x in (x_t, t, actions)]
    start = jnp.asarray(0), model.empty_cache(len(x_t), (at_once, 4, 4))
    made = jax.lax.scan(go_on, start, parts)[1]
    return jnp.moveaxis(made, 1, 0).reshape(x_t.shape)


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_with_a_ring_of_keys_and_values_it_is_the_same(params, seen, at_once):
    """Of more frames than the ring has places for."""
    longer = [jnp.concatenate([x, x[:, :3]], axis=1) for x in seen]
    np.testing.assert_allclose(with_a_cache(params, *longer, at_once), output(params, *longer), **ROUNDING)


def test_beside_a_clean_copy_a_frame_is_as_after_clean_frames(params, seen):
    """The two-copy mask equals passes frame by frame, of noisy frames each after clean ones."""
    x_t, t, actions = seen
    clean, t_clean = jax.random.normal(jax.random.key(5), x_t.shape), jnp.full(t.shape, 0.02)
    beside = jax.jit(lambda params, *args: DEFINITION.bind(params).beside_clean(*args).prediction)
    actual = beside(params, x_t, t, clean, t_clean, actions)
    for frame in range(FRAMES):
        mixed = (clean.at[:, frame].set(x_t[:, frame]), t_clean.at[:, frame].set(t[:, frame]))
        np.testing.assert_allclose(actual[:, frame], output(params, *mixed, actions)[:, frame], **ROUNDING)


def test_a_level_for_each_clip_is_that_level_in_each_frame(params, seen):
    x_t, _, actions = seen
    t = jnp.array([[0.3], [0.8]])
    each = output(params, x_t, jnp.repeat(t, FRAMES, axis=1), actions)
    np.testing.assert_allclose(output(params, x_t, t, actions), each, **ROUNDING)


def test_actions_of_other_frames_than_the_latents_are_refused(params, seen):
    x_t, t, actions = seen
    with pytest.raises(ValueError, match="a condition of 4 latent frames for latents that have levels of 5"):
        output(params, x_t, t, actions[:, :4])


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"context": 2, "data": 2, "tensor": 2}, {"context": 4, "data": 2}])
def test_one_device_and_eight_with_split_tokens_give_the_same_value_and_gradient(params, seen, axes):
    """By a ring, with heads over devices of their own and without: attention has two heads."""
    x_t, t, actions = seen
    x_t = jnp.concatenate([x_t, -x_t], axis=2)  # eight places
    x_t = jnp.concatenate([x_t, -x_t], axis=3)

    def loss(params, x_t, t, actions):
        return jnp.sum(jnp.square(DEFINITION.bind(params).output(x_t, t, actions).prediction))

    one = jax.jit(jax.value_and_grad(loss))(params, x_t, t, actions)
    mesh = small_mesh(8, **axes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shard_params(DEFINITION.axes, DEFINITION.shapes, mesh))
        eight = jax.jit(jax.value_and_grad(loss))(placed, x_t, t, actions)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-4)
    for name, gradient in one[1].items():
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(eight[1][name], gradient, atol=1e-4 * scale + 1e-6, err_msg=name)
