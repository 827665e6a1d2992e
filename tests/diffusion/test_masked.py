"""Laws of masked diffusion, with a denoiser that knows the distribution of the data exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.diffusion.masked import Absorbing, CosineMasking, LogLinear, categorical, next_token_nats, ranks
from dit_video.diffusion.process import Known, Process

V, L = 3, 4
TABLE = np.random.default_rng(0).dirichlet(np.full(V**L, 0.3)).reshape((V,) * L)


def posteriors() -> np.ndarray:
    """log p(x_i | what is not masked) for every row of tokens and masks, [(V + 1)^L, L, V]."""
    made = np.zeros(((V + 1) ** L, L, V))
    for number, x in enumerate(itertools.product(range(V + 1), repeat=L)):
        joint = TABLE[tuple(slice(None) if token == V else slice(token, token + 1) for token in x)]
        for i in range(L):
            marginal = joint.sum(tuple(axis for axis in range(L) if axis != i))
            made[number, i] = np.log(marginal / marginal.sum() + 1e-30) if x[i] == V else 0.0
    return made


POSTERIORS = posteriors()


def exact(x_t, t=None, cond=None):
    """The denoiser that knows `TABLE`."""
    del t, cond
    number = sum(x_t[:, i] * (V + 1) ** (L - 1 - i) for i in range(L))
    return jnp.asarray(POSTERIORS, jnp.float32)[number]


@pytest.fixture(scope="module")
def data():
    x_0 = jnp.tile(jnp.asarray([[1, 0, 2, 1]], jnp.int32), (20_000, 1))
    return x_0, -np.log(TABLE[1, 0, 2, 1])


def test_it_is_a_process():
    assert isinstance(Absorbing(num_tokens=V), Process)


@pytest.mark.parametrize("schedule", [LogLinear(), CosineMasking()])
def test_the_bound_of_an_exact_denoiser_is_the_likelihood_under_any_schedule(schedule, data):
    x_0, nll = data
    process = Absorbing(num_tokens=V, schedule=schedule, times=(1e-5, 1.0))
    corrupted = process.corrupt(jax.random.key(0), x_0)
    nats = np.asarray(process.nats(exact(corrupted.x_t), corrupted))
    assert abs(nats.mean() - nll) < 5 * nats.std() / len(nats) ** 0.5
    loss, _ = process.loss(exact(corrupted.x_t), corrupted)
    np.testing.assert_allclose(loss, nats.mean() / L, rtol=1e-5)


def test_both_estimators_have_one_mean_and_fixed_counts_less_variance(data):
    x_0, nll = data
    process, keys = Absorbing(num_tokens=V), jax.random.split(jax.random.key(1), len(x_0))
    by_time = process.corrupt(jax.random.key(0), x_0)
    by_count = process.corrupt_count(keys, x_0, None, jnp.asarray(0), 1)
    of_time, of_count = (np.asarray(process.nats(exact(made.x_t), made)) for made in (by_time, by_count))
    assert abs(of_count.mean() - nll) < 5 * of_count.std() / len(x_0) ** 0.5
    assert of_count.std() < of_time.std() / 2


def test_draws_of_a_row_share_out_all_counts():
    process, keys = Absorbing(num_tokens=V), jax.random.split(jax.random.key(1), 3)
    x_0 = jnp.zeros((3, L), jnp.int32)
    counts = [process.corrupt_count(keys, x_0, None, jnp.asarray(d), L).weight > 0 for d in range(L)]
    assert np.sort(np.stack(counts).sum(-1), axis=0).T.tolist() == [[1, 2, 3, 4]] * 3


def test_blocks_of_one_token_are_exact_and_the_autoregressive_likelihood(data):
    """Of a denoiser that sees clean tokens before a block: with one token a block there is nothing to draw."""
    x_0, nll = data
    x_0 = x_0[:2]
    process = Absorbing(num_tokens=V, block_size=1)
    corrupted = process.corrupt(jax.random.key(0), x_0)
    # Position i sees what is before it.
    prefixes = [jnp.where(jnp.arange(L) < i, x_0, V) for i in range(L)]
    logits = jnp.stack([exact(prefix)[:, i] for i, prefix in enumerate(prefixes)], axis=1)
    block, _ = process.loss(logits, corrupted)
    autoregressive = next_token_nats(logits, x_0, jnp.ones(x_0.shape, bool)).mean() / L
    np.testing.assert_allclose([block, autoregressive], nll / L, rtol=1e-5)


def test_a_block_as_long_as_the_text_is_the_plain_process(data):
    x_0 = data[0][:64]
    plain, block = (Absorbing(num_tokens=V, block_size=size).corrupt(jax.random.key(3), x_0) for size in (None, L))
    jax.tree.map(np.testing.assert_array_equal, plain, block)


def test_what_is_known_is_never_masked_and_not_counted():
    x_0 = jnp.zeros((50, L), jnp.int32)
    known = Known(x_0, jnp.asarray([[True, False, False, True]]))
    process, keys = Absorbing(num_tokens=V, block_size=2), jax.random.split(jax.random.key(0), 50)
    for made in (process.corrupt(jax.random.key(0), x_0, known), process.corrupt_count(keys, x_0, known, 0, 1)):
        assert (np.asarray(made.x_t)[:, [0, 3]] == 0).all()
        assert made.counted.sum() == 100
        assert ((made.weight > 0) == (made.x_t == V)).all()
    # One token of each block is left, which is masked with weight 1.
    assert (np.asarray(made.weight)[:, 1:3] == 1).all()


def test_times_have_low_discrepancy():
    t = np.sort(np.asarray(Absorbing(num_tokens=V).corrupt(jax.random.key(0), jnp.zeros((100, L), jnp.int32)).t[:, 0]))
    np.testing.assert_allclose(np.diff(t), 0.999 / 100, rtol=1e-3)


def test_ancestral_steps_of_independent_tokens_have_their_law_in_any_number_of_steps():
    """Of independent tokens the order and the number of steps do not matter."""
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
    process, keys = Absorbing(num_tokens=V), jax.random.split(jax.random.key(0), 4000)
    for times in ([1.0, 0.0], [1.0, 0.7, 0.2, 0.0]):
        x = process.prior(keys, (L,))
        for number, (t, s) in enumerate(itertools.pairwise(times)):
            step_keys = jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys)
            x = process.step(jnp.broadcast_to(logits, (*x.shape, V)), x, jnp.asarray(t), jnp.asarray(s), step_keys)
        share = np.bincount(np.asarray(x).ravel(), minlength=V + 1) / x.size
        np.testing.assert_allclose(share, [0.5, 0.3, 0.2, 0.0], atol=0.015)


def test_a_row_is_drawn_by_its_own_key_alone():
    keys, logits = jax.random.split(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (3, 5, V))
    drawn = categorical(keys, logits)
    np.testing.assert_array_equal(drawn[1:2], categorical(keys[1:2], logits[1:2]))
    assert ranks(jnp.asarray([0.3, 0.1, 0.1])).tolist() == [2, 0, 1]


@pytest.mark.parametrize("times", [(0.5, 0.5), (0.0, 1.0)])
def test_times_that_are_none_are_refused(times):
    with pytest.raises(ValueError, match=r"Absorbing\.times"):
        Absorbing(num_tokens=V, times=times)
