"""Laws of the orders in which masked tokens are written, and of first-hitting, with a denoiser that is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementScheduler
from diffusers.schedulers.scheduling_entropy_bound import EntropyBoundScheduler
from test_masked import POSTERIORS, TABLE, L, V, exact

from dit_video.diffusion.masked import Absorbing
from dit_video.diffusion.unmasking import (
    Candidates,
    Confidence,
    EntropyBound,
    RandomOrder,
    Remasking,
    Spread,
    Threshold,
    Unmasking,
    bit_reversal,
    nucleus,
)

PROCESS, NUM = Absorbing(num_tokens=V), 2000
KEYS = jax.random.split(jax.random.key(0), NUM)
assert POSTERIORS.shape == ((V + 1) ** L, L, V)


def chi_square(x) -> float:
    """Pearson's statistic of samples against `TABLE`, in standard deviations above its mean."""
    numbers = np.ravel_multi_index(np.asarray(x).T, (V,) * L)
    expected = TABLE.ravel() * len(numbers)
    often = expected > 5
    counts = np.bincount(numbers, minlength=V**L)
    seen = np.append(counts[often], counts[~often].sum())
    due = np.append(expected[often], expected[~often].sum())
    freedom = len(due) - 1
    return (((seen - due) ** 2 / due).sum() - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("order", [RandomOrder(), Spread(tokens=1)])
def test_one_token_a_pass_in_an_order_that_does_not_look_has_the_exact_law(order):
    """First-hitting samples an exact denoiser's law; all at once does not."""
    x = Unmasking(order=order)(exact, PROCESS, PROCESS.prior(KEYS, (L,)), KEYS)
    assert chi_square(x) < 4


def test_all_at_once_has_not_and_confidence_has_not():
    for order in (RandomOrder(tokens=L), Confidence()):
        assert chi_square(Unmasking(order=order)(exact, PROCESS, PROCESS.prior(KEYS, (L,)), KEYS)) > 10


def test_masking_again_keeps_the_law():
    sampler = Remasking(num_steps=90, rate=0.1, hold=0.5)
    assert chi_square(sampler(exact, PROCESS, PROCESS.prior(KEYS, (L,)), KEYS)) < 10


@pytest.mark.parametrize(
    "sampler",
    [
        Unmasking(order=Spread(tokens=2)),
        Unmasking(order=EntropyBound(), temperature=0.0),
        Remasking(num_steps=9, rate=0.5),
    ],
)
def test_what_is_known_never_changes_and_a_row_is_alone(sampler):
    x_1 = PROCESS.prior(KEYS[:6], (L,)).at[:, 1].set(2)
    x = sampler(exact, PROCESS, x_1, KEYS[:6])
    assert (x[:, 1] == 2).all()
    assert (x < V).all()
    np.testing.assert_array_equal(x[2:3], sampler(exact, PROCESS, x_1[2:3], KEYS[2:3]))


def candidates(seed: int, n: int = 16, size: int = 5) -> Candidates:
    rng = np.random.default_rng(seed)
    log_p = jax.nn.log_softmax(jnp.asarray(3 * rng.standard_normal((3, n, size)), jnp.float32))
    return Candidates(
        jnp.asarray(rng.random((3, n)) < 0.7), jnp.asarray(rng.integers(0, size, (3, n)), jnp.int32), log_p
    )


def committed(log_p, drawn, **options):
    """Positions that diffusers' block refinement writes, where `drawn` is what it draws."""
    scheduler = BlockRefinementScheduler(**options)
    scheduler.set_timesteps(drawn.shape[1], block_length=drawn.shape[1])
    tokens, p = torch.tensor(np.asarray(drawn)).long(), torch.tensor(np.asarray(log_p)).exp()
    likelihood = torch.gather(p, -1, tokens[..., None])[..., 0]
    scheduler._sample_from_logits = lambda *arguments, **rest: (tokens, likelihood)
    return scheduler


@pytest.mark.parametrize("seed", range(3))
def test_threshold_and_confidence_choose_what_block_refinement_does(seed):
    """Of equal draws: it writes all above the threshold, or else the likeliest ones."""
    made, mask = candidates(seed), 99
    sample = torch.where(torch.tensor(np.asarray(made.masked)), mask, 0).long()
    for threshold, order in ((0.4, Threshold(probability=0.4)), (2.0, Confidence())):
        scheduler = committed(made.log_p, made.drawn, threshold=threshold)
        logits = torch.tensor(np.asarray(made.log_p))
        _, chosen, *_ = scheduler.step(logits, 0, sample, mask_token_id=mask, temperature=1.0, return_dict=False)
        np.testing.assert_array_equal(order.choose(made, KEYS[:3], 0), chosen.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_bound_accepts_what_that_of_diffusers_does(seed):
    """It knows no masks, so all are masked here; and its temperature falls, so it is held at 1."""
    made = candidates(seed)
    made = made._replace(masked=jnp.ones_like(made.masked))
    scheduler = EntropyBoundScheduler(entropy_bound=0.8, t_max=1.0, t_min=1.0)
    logits, sample = torch.tensor(np.asarray(made.log_p)), torch.zeros(made.drawn.shape).long()
    _, accepted, *_ = scheduler.step(logits, 0, sample, return_dict=False)
    np.testing.assert_array_equal(EntropyBound(bound=0.8).choose(made, KEYS[:3], 0), accepted.numpy())


@pytest.mark.parametrize(
    "order", [RandomOrder(tokens=3), Spread(tokens=3), Confidence(tokens=3), Threshold(), EntropyBound()]
)
def test_an_order_chooses_masked_positions_and_at_least_one(order):
    made = candidates(7)
    chosen = order.choose(made, KEYS[:3], 1)
    assert not (chosen & ~made.masked).any()
    assert chosen.any(-1).all()
    if hasattr(order, "tokens"):
        assert (chosen.sum(-1) == 3).all()


def test_spread_positions_are_far_apart():
    assert bit_reversal(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    everything = candidates(0)._replace(masked=jnp.ones((3, 16), bool))
    for row in np.asarray(Spread(tokens=4).choose(everything, KEYS[:3], 0)):
        assert np.diff(np.flatnonzero(row)).tolist() == [4, 4, 4]


def test_a_nucleus_is_the_fewest_tokens_that_reach_its_probability():
    log_p = jnp.log(jnp.asarray([0.15, 0.5, 0.05, 0.3]))
    assert (jnp.exp(nucleus(log_p, 0.6)) > 0).tolist() == [False, True, False, True]
    np.testing.assert_allclose(jnp.exp(Unmasking(top_p=0.6).log_p(log_p)), [0, 0.625, 0, 0.375], rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"temperature": -1.0}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Unmasking(**wrong)


@pytest.mark.parametrize(("temperature", "power"), [(0.5, 2), (1.0, 1), (2.0, 0.5), (0.0, 1)])
def test_a_temperature_is_a_power_of_the_probabilities_and_zero_takes_the_likeliest(temperature, power):
    """At 0 the order still sees the probabilities of the network itself."""
    p, sampler = np.array([0.15, 0.5, 0.05, 0.3]), Unmasking(temperature=temperature)
    log_p = sampler.log_p(jnp.log(jnp.asarray(p)))
    np.testing.assert_allclose(jnp.exp(log_p), p**power / (p**power).sum(), rtol=1e-5)
    drawn = np.asarray(sampler.draw(jnp.broadcast_to(log_p, (50, 4)), KEYS[:50]))
    assert (set(drawn.tolist()) == {1}) == (temperature == 0)
