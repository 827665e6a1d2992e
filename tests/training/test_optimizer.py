import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_video.nn.module import Params
from dit_video.training.optimizer import EMA, AdamW, Decay, Group, Muon, num_updates, schedule

AXES = {
    "labels.table": ("vocab", "embed"),
    "blocks.up.bias": ("layers", "mlp"),
    "blocks.qkv.kernel": ("layers", "embed", None, "heads", "head_dim"),
    "blocks.out.kernel": ("layers", "heads", "head_dim", "embed"),
    "critic.kernel": (None, None, None, "channels_in", "channels_out"),
}
SHAPES = {
    "labels.table": (4, 8),
    "blocks.up.bias": (3, 16),
    "blocks.qkv.kernel": (3, 8, 3, 2, 4),
    "blocks.out.kernel": (3, 2, 4, 8),
    "critic.kernel": (1, 3, 3, 4, 4),
}
KERNELS = ("blocks.qkv.kernel", "blocks.out.kernel", "critic.kernel")


def draw(seed: int, scale: float = 1.0) -> Params:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def updates(rule: optax.GradientTransformation, gradients: list[Params]) -> list[Params]:
    """The updates of consecutive steps; parameters stay where they are."""
    params = draw(0)

    def step(state, gradient):
        update, state = rule.update(gradient, state, params)
        return state, update

    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients)
    _, updates = jax.jit(lambda g: jax.lax.scan(step, rule.init(params), g))(stacked)
    return [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(len(gradients))]


def test_warm_up_is_linear_and_cosine_ends_at_zero():
    rate = schedule(0.3, 5, Decay.COSINE, 25)
    warm = [float(rate(jnp.array(step))) for step in range(6)]
    np.testing.assert_allclose(warm, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-6)
    halfway, last = float(rate(jnp.array(15))), float(rate(jnp.array(25)))
    assert halfway == pytest.approx(0.15)
    assert last == pytest.approx(0, abs=1e-9)
    assert float(rate(jnp.array(10))) == pytest.approx(0.15 * (1 + np.cos(np.pi / 4)))


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_the_rate_on_record_is_the_one_of_the_update(optimizer):
    value = optimizer(learning_rate=0.3, warmup_steps=2, decay=Decay.COSINE)
    rule, rates = value.build(25, AXES), value.rates(25)
    state = rule.init(draw(0))
    for count in range(3):
        assert num_updates(state) == count
        _, state = rule.update(draw(count + 1), state, draw(0))
        np.testing.assert_allclose(float(rates(count)), 0.1 * (count + 1), rtol=1e-6)


def test_a_constant_rate_stays_after_warm_up():
    rate = schedule(0.3, 2, Decay.CONSTANT, 25)
    np.testing.assert_allclose(
        [float(rate(jnp.array(step))) for step in (0, 1, 2, 24)], [0.1, 0.2, 0.3, 0.3], rtol=1e-6
    )
    assert float(schedule(0.3, 0, Decay.CONSTANT, 25)(jnp.array(0))) == pytest.approx(0.3)


def test_the_average_is_a_weighted_sum_of_all_parameters():
    """With the ramp d_n = min(decay, (1 + n) / (10 + n)): sum over n of (1 - d_n) prod_{m > n} d_m p_n."""
    history = [{"p": jnp.float32(value)} for value in np.random.default_rng(0).normal(size=41)]
    average, ema = history[0], EMA(decay=0.7)
    for n, params in enumerate(history[1:]):
        average = ema.update(average, params, jnp.int32(n))
    d = np.minimum(0.7, (1 + np.arange(40)) / (10 + np.arange(40)))
    assert d[0] == 0.1
    assert d[-1] == 0.7
    weights = np.concatenate([[1.0], 1 - d]) * np.append(np.cumprod(d[::-1])[::-1], 1.0)
    assert weights.sum() == pytest.approx(1.0)
    assert float(average["p"]) == pytest.approx(float(np.dot(weights, [float(p["p"]) for p in history])), rel=1e-5)


def test_adamw_is_optax_adamw_after_clipping():
    gradients = [draw(seed) for seed in (1, 2, 3)]
    settings = AdamW(learning_rate=0.01, b1=0.8, b2=0.9, clip_norm=2.0, weight_decay=0.1)
    mask = {name: name in KERNELS for name in SHAPES}
    plain = optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(0.01, 0.8, 0.9, weight_decay=0.1, mask=mask))
    for ours, theirs in zip(updates(settings.build(100, AXES), gradients), updates(plain, gradients)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_only_kernels_decay():
    """Without a gradient, what is left of an update is the decay: - rate x decay x parameter."""
    zeros = jax.tree.map(jnp.zeros_like, draw(0))
    update = updates(AdamW(learning_rate=0.01, weight_decay=0.1).build(100, AXES), [zeros])[0]
    for name, param in draw(0).items():
        expected = -0.001 * param if name in KERNELS else np.zeros_like(param)
        np.testing.assert_allclose(update[name], expected, rtol=1e-5, err_msg=name)


def test_the_update_does_not_grow_with_the_gradient_beyond_the_clip():
    small, large = ([draw(1, scale)] for scale in (1.0, 1e4))
    rule = Muon(clip_norm=1e-3).build(10, AXES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-8),
        updates(rule, small)[0],
        updates(rule, large)[0],
    )


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.01), Muon(learning_rate=0.01)], ids=["AdamW", "Muon"])
def test_a_group_learns_at_its_own_rate(optimizer):
    gradients = [draw(seed) for seed in (1, 2)]
    groups = (Group(prefix="critic", learning_rate=0.03), Group(prefix="blocks.out", learning_rate=0.001))
    grouped = updates(dataclasses.replace(optimizer, groups=groups, clip_norm=1e9).build(100, AXES), gradients)
    free = updates(dataclasses.replace(optimizer, clip_norm=1e9).build(100, AXES), gradients)
    for one, other in zip(grouped, free):
        for name in SHAPES:
            factor = 3.0 if name.startswith("critic") else 0.1 if name.startswith("blocks.out") else 1.0
            np.testing.assert_allclose(one[name], factor * other[name], rtol=1e-3, atol=1e-9, err_msg=name)


def test_a_group_is_clipped_by_its_own_norm():
    """A huge gradient of the critic leaves the rest as it was."""
    calm = draw(1)
    loud = calm | {"critic.kernel": 1e6 * calm["critic.kernel"]}
    rest = [name for name in SHAPES if not name.startswith("critic")]
    # Adam does not see the scale of one gradient, but that of a second against the first.
    group = Group(prefix="critic", learning_rate=0.01)
    grouped = AdamW(learning_rate=0.01, clip_norm=1.0, groups=(group,)).build(100, AXES)
    calm_update, loud_update = (updates(grouped, [draw(2), g])[1] for g in (calm, loud))
    for name in rest:
        np.testing.assert_array_equal(calm_update[name], loud_update[name])
    shared = AdamW(learning_rate=0.01, clip_norm=1.0).build(100, AXES)
    calm_update, loud_update = (updates(shared, [draw(2), g])[1] for g in (calm, loud))
    assert not np.allclose(loud_update["labels.table"], calm_update["labels.table"], rtol=0.1)


def matrices(name: str, update: jax.Array) -> np.ndarray:
    """The matrices [n in out] of a kernel: one per layer, one each for q, k and v, one of a convolution."""
    if name == "blocks.qkv.kernel":
        return np.asarray(update).transpose(0, 2, 1, 3, 4).reshape(9, 8, 8)
    if name == "blocks.out.kernel":
        return np.asarray(update).reshape(3, 8, 8)
    return np.asarray(update).reshape(1, 36, 4)


@pytest.mark.parametrize("groups", [(), (Group(prefix="blocks.out", learning_rate=0.02),)], ids=["all", "grouped"])
def test_muon_replaces_singular_values_by_one_size(groups):
    """For a gradient U S V^T the update is - rate 0.2 sqrt(max(in, out)) U V^T, the 0.2 being Adam's usual size."""
    gradient = draw(1)
    update = updates(Muon(learning_rate=0.02, groups=groups).build(10, AXES), [gradient])[0]
    for name in KERNELS:
        for before, after in zip(matrices(name, gradient[name]), matrices(name, update[name])):
            left, singular, right = np.linalg.svd(before, full_matrices=False)
            rotated = -left.T @ after @ right.T / (0.02 * 0.2 * np.sqrt(max(before.shape)))
            np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=0.02, err_msg=name)
            # Five Newton-Schulz steps bring to about 1 what was not nearly 0.
            large = singular > 0.1 * np.linalg.norm(before)
            assert large.sum() >= 4
            np.testing.assert_allclose(np.diag(rotated)[large], 1.0, atol=0.35, err_msg=name)


def test_muon_leaves_everything_else_to_adam():
    gradients = [draw(1), draw(2)]
    ours = updates(Muon(adam_learning_rate=3e-3, b2=0.99, clip_norm=1e9).build(10, AXES), gradients)
    theirs = updates(optax.nadamw(3e-3, b2=0.99, weight_decay=0.0), gradients)
    for one, other in zip(ours, theirs):
        for name in SHAPES.keys() - KERNELS:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-8, err_msg=name)
