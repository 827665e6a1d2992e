import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dit_video.vae.losses import (
    AutoencodeLoss,
    Critic,
    ReconstructionLoss,
    autoencode_loss,
    critic_loss,
    detail_distance,
    generator_loss,
    kl_divergence,
    psnr,
    reconstruction_distance,
)
from dit_video.vae.vae import Autoencoded

MOMENTS = jnp.zeros((2, 2, 2, 2, 8))


@pytest.fixture(scope="module")
def critic(filled) -> Critic:
    return filled(lambda: Critic(4, rngs=nnx.Rngs(0)))


def clips(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1.0, 1.0, (2, 5, 16, 16, 3)), jnp.float32)


gradient_of_generator = jax.jit(jax.grad(generator_loss, argnums=(0, 1)))
gradient_of_critic = jax.jit(jax.grad(critic_loss, argnums=(0, 1)))


def biggest(tree) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_generator_term_moves_the_vae_only(critic):
    for_critic, for_vae = gradient_of_generator(critic, clips(0))
    assert biggest(for_critic) == 0.0
    assert biggest(for_vae) > 0.0


def test_critic_term_moves_the_critic_only(critic):
    for_critic, for_vae = gradient_of_critic(critic, clips(0), clips(1))
    assert biggest(for_critic) > 0.0
    assert biggest(for_vae) == 0.0


class Brightness(Critic):
    """Scores every place of a clip by its first channel, so that scores can be chosen."""

    def __call__(self, pixels):
        return pixels[..., 0]


def of_scores(*scores: float) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(scores)[:, None, None, None, None], (len(scores), 1, 16, 16, 3))


def test_adversarial_losses_are_those_of_their_equations():
    """(E max(0, 1 - D(real)) + E max(0, 1 + D(fake))) / 2 and -E D(fake), of scores on both sides of both hinges."""
    critic = Brightness(4, rngs=nnx.Rngs(0))
    real, fake = of_scores(-3.0, -0.5, 0.5, 4.0), of_scores(-5.0, -0.25, 0.25, 2.0)
    hinge = ((4 + 1.5 + 0.5 + 0) / 4 + (0 + 0.75 + 1.25 + 3) / 4) / 2
    np.testing.assert_allclose(critic_loss(critic, fake, real), hinge, rtol=1e-6)
    np.testing.assert_allclose(generator_loss(critic, fake), 3 / 4, rtol=1e-6)


def test_one_scalar_gives_each_its_own_gradient(critic):
    """The generator's for the VAE, with that of the reconstruction; the hinge's for the critic."""
    config = AutoencodeLoss(reconstruction=ReconstructionLoss.L1, kl=0.0, adversarial=0.5)

    @jax.jit
    def gradient(critic, reconstruction):
        def total(critic, reconstruction):
            return autoencode_loss(config, Autoencoded(reconstruction, MOMENTS), clips(1), critic, 0)[0]

        return jax.grad(total, argnums=(0, 1))(critic, reconstruction)

    for_critic, for_vae = gradient(critic, clips(0))
    expected, _ = gradient_of_critic(critic, clips(0), clips(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), for_critic, expected)
    l1 = jnp.sign(clips(0) - clips(1)) / clips(0).size
    _, generator = gradient_of_generator(critic, clips(0))
    np.testing.assert_allclose(for_vae, l1 + 0.5 * generator, rtol=1e-3, atol=1e-7)


def test_adversary_waits_for_its_step(critic):
    config = AutoencodeLoss(adversarial=0.5, adversarial_start=10)
    output = Autoencoded(clips(0), MOMENTS)

    @jax.jit
    def at(step):
        return jax.grad(lambda c: autoencode_loss(config, output, clips(1), c, step)[0])(critic)

    assert biggest(at(9)) == 0.0
    assert biggest(at(10)) > 0.0


def test_critic_learns_to_tell_noise_from_fainter_noise(critic):
    real, fake = clips(0), 0.3 * clips(1)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(nnx.state(critic, nnx.Param))
    graph, parameters = nnx.split(critic)

    @jax.jit
    def step(parameters, state):
        loss, gradient = jax.value_and_grad(lambda p: critic_loss(nnx.merge(graph, p), fake, real))(parameters)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, loss

    for _ in range(30):
        parameters, state, loss = step(parameters, state)
    assert loss < 0.2


def test_adversarial_weight_without_a_critic_is_an_error():
    output = Autoencoded(clips(0), MOMENTS)
    with pytest.raises(ValueError, match=r"AutoencodeLoss.adversarial=0.1: needs a Critic"):
        autoencode_loss(AutoencodeLoss(adversarial=0.1), output, clips(1), None, 0)
    with pytest.raises(ValueError, match=r"AutoencodeLoss.kl=-1.0"):
        AutoencodeLoss(kl=-1.0)


@pytest.mark.parametrize(("kind", "least"), [(ReconstructionLoss.L1, 0.0), (ReconstructionLoss.CHARBONNIER, 0.01)])
def test_a_perfect_reconstruction_of_a_standard_normal_posterior_costs_nothing(kind, least):
    output = Autoencoded(clips(0), MOMENTS)
    config = AutoencodeLoss(reconstruction=kind, kl=1.0, perceptual=1.0)
    total, metrics = autoencode_loss(config, output, clips(0), None, 0)
    np.testing.assert_allclose(total, least, atol=1e-6)
    assert set(metrics) == {"reconstruction", "kl", "psnr", "perceptual"}


def test_gaussian_distance_gains_as_much_from_halving_a_small_error_as_a_large_one():
    def at(error):
        return reconstruction_distance(ReconstructionLoss.GAUSSIAN, error * clips(0))

    np.testing.assert_allclose(at(1.0) - at(0.5), np.log(2.0), rtol=1e-3)
    np.testing.assert_allclose(at(0.1) - at(0.05), np.log(2.0), rtol=1e-3)
    assert jnp.isfinite(at(0.0))


def test_kl_of_a_shifted_and_scaled_gaussian():
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s."""
    moments = jnp.broadcast_to(jnp.asarray([3.0, jnp.log(4.0)]), (1, 1, 1, 1, 2))
    value = kl_divergence(Autoencoded(clips(0), moments))
    np.testing.assert_allclose(value, (9.0 + 4.0 - 1.0) / 2 - np.log(2.0), rtol=1e-6)


def test_detail_ignores_brightness_and_sees_flicker():
    assert detail_distance(jnp.full((1, 5, 8, 8, 3), 0.3)) < 1e-6
    flicker = jnp.broadcast_to(jnp.asarray([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None, None, None], (1, 5, 8, 8, 3))
    assert detail_distance(flicker) > 0.5


def test_psnr_of_an_error_of_one_tenth_of_the_range_is_20_db():
    np.testing.assert_allclose(psnr(jnp.full((2, 1, 4, 4, 3), 0.2)), 20.0, rtol=1e-5)


def of_differences(*values: float) -> jax.Array:
    """A clip for each value, which it has everywhere."""
    return jnp.broadcast_to(jnp.asarray(values)[:, None, None, None, None], (len(values), 2, 4, 4, 3))


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (ReconstructionLoss.L1, lambda d: np.abs(d).mean()),
        (ReconstructionLoss.CHARBONNIER, lambda d: np.sqrt(d**2 + 1e-4).mean()),
        (ReconstructionLoss.GAUSSIAN, lambda d: (np.log(d**2 + 6e-7) / 2).mean()),
    ],
    ids=list(ReconstructionLoss),
)
def test_distances_of_even_differences_have_closed_forms(kind, law):
    d = np.array([0.0, -0.01, 0.5, 1e-3])
    np.testing.assert_allclose(reconstruction_distance(kind, of_differences(*d)), law(d), rtol=1e-4)


def test_psnr_is_the_mean_of_those_of_clips_and_finite_for_none_at_all():
    np.testing.assert_allclose(psnr(of_differences(0.2, 2.0)), (20 + 0) / 2, atol=1e-4)
    np.testing.assert_allclose(psnr(of_differences(0.0)), 10 * np.log10(4e10), rtol=1e-5)


@pytest.mark.parametrize(("num_frames", "expected"), [(3, (3 * 0.5 + 7 * 0.25 + 7 * 0.125) / 9), (1, 7 * 0.375 / 6)])
def test_detail_of_a_slope_doubles_with_every_octave(num_frames, expected):
    """d = t/2 + row/4 + column/8: along rows and columns differences are 1, 2 and 4 times those of the finest."""
    t, row, column = np.mgrid[:num_frames, :8, :8]
    slope = jnp.asarray(t / 2 + row / 4 + column / 8, jnp.float32)[None, ..., None]
    np.testing.assert_allclose(detail_distance(slope), expected, rtol=1e-6)
    # A row and a column that make no pair count in the finest octave alone.
    t, row, column = np.mgrid[:num_frames, :9, :9]
    slope = jnp.asarray(t / 2 + row / 4 + column / 8, jnp.float32)[None, ..., None]
    np.testing.assert_allclose(detail_distance(slope), expected, rtol=1e-6)
    np.testing.assert_allclose(detail_distance(slope, 1) * (3 if num_frames > 1 else 2), 0.375 + 0.5 * (num_frames > 1))


def test_the_scalar_is_the_sum_of_its_terms_by_weight(critic):
    config = AutoencodeLoss(
        reconstruction=ReconstructionLoss.L1, kl=0.3, perceptual=0.7, adversarial=0.2, adversarial_start=5
    )
    moments = jnp.asarray(np.random.default_rng(2).standard_normal(MOMENTS.shape), jnp.float32)
    total, terms = autoencode_loss(config, Autoencoded(clips(0), moments), clips(1), critic, 5)
    weights = {"reconstruction": 1, "kl": 0.3, "perceptual": 0.7, "generator": 0.2, "critic": 1, "psnr": 0}
    assert set(terms) == set(weights)
    assert all(terms[name] != 0 for name in terms)
    np.testing.assert_allclose(total, sum(weights[name] * float(terms[name]) for name in terms), rtol=1e-5)
    np.testing.assert_allclose(terms["critic"], critic_loss(critic, clips(0), clips(1)), rtol=1e-4)
    total, terms = autoencode_loss(config, Autoencoded(clips(0), moments), clips(1), critic, 4)
    assert terms["generator"] == terms["critic"] == 0


def test_terms_without_weight_are_not_computed():
    _, terms = autoencode_loss(AutoencodeLoss(), Autoencoded(clips(0), MOMENTS), clips(1), None, 0)
    assert set(terms) == {"reconstruction", "kl", "psnr"}
    assert AutoencodeLoss(kl=0.0, perceptual=0.0, adversarial=0.0, adversarial_start=0).kl == 0
    assert (AutoencodeLoss().kl, AutoencodeLoss().adversarial_start) == (1e-6, 0)


def test_a_critic_scores_cells_that_see_no_later_frame_and_no_other_clip(critic):
    """One score for 4 frames of 16 x 16 pixels, frame 0 alone."""
    x = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (2, 9, 32, 48, 3)), jnp.float32)
    score = jax.jit(lambda critic, x: critic(x))
    scores = score(critic, x)
    assert (scores.shape, scores.dtype) == ((2, 3, 2, 3), jnp.float32)
    later = score(critic, x.at[0, 5:].add(1.0))
    np.testing.assert_array_equal(later[0, :2], scores[0, :2])
    np.testing.assert_array_equal(later[1], scores[1])
    assert np.all(later[0, 2] != scores[0, 2])


def test_a_critic_is_as_wide_at_each_level_as_twice_the_one_before():
    critic = nnx.eval_shape(lambda: Critic(6, rngs=nnx.Rngs(0)))
    shapes = [conv.kernel.shape for conv in critic.convs]
    assert shapes == [(3, 3, 3, 16 * 3, 6), (3, 3, 3, 8 * 6, 12), (3, 3, 3, 8 * 12, 24)]
    assert critic.score.kernel.shape == (1, 1, 1, 24, 1)
