import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dit_video.vae.adversary import (
    AutoencodeLoss,
    Critic,
    Reconstruction,
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
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


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
    config = AutoencodeLoss(reconstruction=Reconstruction.L1, kl=0.0, adversarial=0.5)

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


@pytest.mark.parametrize(("kind", "least"), [(Reconstruction.L1, 0.0), (Reconstruction.CHARBONNIER, 0.01)])
def test_a_perfect_reconstruction_of_a_standard_normal_posterior_costs_nothing(kind, least):
    output = Autoencoded(clips(0), MOMENTS)
    config = AutoencodeLoss(reconstruction=kind, kl=1.0, perceptual=1.0)
    total, metrics = autoencode_loss(config, output, clips(0), None, 0)
    np.testing.assert_allclose(total, least, atol=1e-6)
    assert set(metrics) == {"reconstruction", "kl", "psnr", "perceptual"}


def test_gaussian_distance_gains_as_much_from_halving_a_small_error_as_a_large_one():
    def at(error):
        return reconstruction_distance(Reconstruction.GAUSSIAN, error * clips(0))

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
