"""Losses of the video VAE: reconstruction, image-gradient (detail), KL and adversarial (GAN) with its critic.

The critic is a second group of parameters in the same step, not a second trainer: its hinge loss sees stopped
reconstructions and the generator's term sees stopped critic parameters, so each gradient has one source.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dit_video.arrays import Pixels
from dit_video.config.bounds import at_least
from dit_video.nn.conv import CausalConv3d, fold
from dit_video.nn.norm import RMSNorm
from dit_video.vae.vae import Autoencoded, posterior


class ReconstructionLoss(enum.StrEnum):
    """Reconstruction loss: pixel distance of d = reconstruction - pixels."""

    L1 = "l1"  # mean |d|: the median of what a latent could mean; edges stay sharp
    CHARBONNIER = "charbonnier"  # mean sqrt(d^2 + 1e-4): L2 below 0.01 (a grey level is 0.008), L1 above
    # log(mean d^2 of a clip) / 2, mean over clips: the Gaussian likelihood at each clip's best variance
    # (optimal sigma-VAE, Rybkin et al. 2021, arXiv:2006.13202), that is PSNR up to scale. Its gradient does not
    # fade as clips get better, so an easy clip counts as much as a hard one, and KL keeps its weight.
    GAUSSIAN = "gaussian"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencodeLoss:
    """Weights of the VAE loss terms; the reconstruction has weight 1.

    reconstruction: the pixel distance. On digits the Gaussian reached 1.9 dB more PSNR than L1 in equal steps.
    kl: weight of KL(q || N(0, 1)), averaged over latent elements.
    perceptual: weight of `detail_distance`. LPIPS needs pretrained weights, which cannot be loaded offline, so
        the term compares multi-scale image gradients instead; it is not LPIPS and makes no claim to be.
    adversarial: weight of the generator's hinge term; 0 means no critic.
    adversarial_start: first step at which critic and generator term are computed at all.
    """

    reconstruction: ReconstructionLoss = ReconstructionLoss.GAUSSIAN
    kl: float = 1e-6
    perceptual: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0

    def __post_init__(self):
        at_least(self, 0, "kl", "perceptual", "adversarial", "adversarial_start")


class Critic(nnx.Module):
    """Patch discriminator (critic): one score per 4x16x16 cell (frames, rows, columns) of a clip, higher for real ones.

    Space-time folds and 3-tap convolutions, as in the VAE; leaky ReLU and normalisation per position, so that
    clips of a batch do not mix. A score sees its own cell, its neighbours and the past.
    """

    strides = ((1, 4, 4), (2, 2, 2), (2, 2, 2))

    def __init__(self, channels: int = 32, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        convs, norms, width = [], [], 3
        for level, stride in enumerate(self.strides):
            folded = stride[0] * stride[1] * stride[2] * width
            width = channels * 2**level
            convs.append(CausalConv3d(folded, width, (3, 3, 3), dtype=dtype, rngs=rngs))
            norms.append(RMSNorm(width, rngs=rngs))
        self.convs = nnx.List(convs)
        self.norms = nnx.List(norms)
        self.score = CausalConv3d(width, 1, (1, 1, 1), out_axis="data_channels", dtype=dtype, rngs=rngs)

    def __call__(self, pixels: Pixels) -> Float[Array, "B t h w"]:
        """Scores of whole clips, float32. Rows and columns must be multiples of 16."""
        x = pixels
        for stride, conv, norm in zip(self.strides, self.convs, self.norms):
            x, _ = conv(fold(x, stride, first=True))
            x = nnx.leaky_relu(norm(x), 0.2)
        return self.score(x)[0][..., 0].astype(jnp.float32)


def autoencode_loss(
    config: AutoencodeLoss,
    output: Autoencoded,
    pixels: Pixels,
    critic: Critic | None,
    step: Int[Array, ""] | int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Total loss of VAE and critic, and its terms (unweighted) as metrics.

    Raises ValueError where `adversarial > 0` comes without a critic.
    """
    difference = output.reconstruction - pixels
    metrics = {
        "reconstruction": reconstruction_distance(config.reconstruction, difference),
        "kl": kl_divergence(output),
        "psnr": psnr(difference),
    }
    total = metrics["reconstruction"] + config.kl * metrics["kl"]
    if config.perceptual > 0:
        metrics["perceptual"] = detail_distance(difference)
        total += config.perceptual * metrics["perceptual"]
    if config.adversarial > 0:
        if critic is None:
            raise ValueError(f"AutoencodeLoss.adversarial={config.adversarial}: needs a Critic, got None")
        # cond, not a factor of 0: steps before the start do not pay for the critic.
        generator, hinge = jax.lax.cond(
            step >= config.adversarial_start,
            lambda: (
                generator_loss(critic, output.reconstruction),
                critic_loss(critic, output.reconstruction, pixels),
            ),
            lambda: (jnp.zeros(()), jnp.zeros(())),
        )
        metrics |= {"generator": generator, "critic": hinge}
        total += config.adversarial * generator + hinge
    return total, metrics


def reconstruction_distance(kind: ReconstructionLoss, difference: Pixels) -> Float[Array, ""]:
    """Reconstruction loss of the chosen kind, mean over the batch."""
    match kind:
        case ReconstructionLoss.L1:
            return jnp.mean(jnp.abs(difference))
        case ReconstructionLoss.CHARBONNIER:
            return jnp.mean(jnp.sqrt(jnp.square(difference) + 1e-4))
        case ReconstructionLoss.GAUSSIAN:
            # The floor, 0.1 grey levels, keeps a black clip reproduced exactly from a loss of minus infinity.
            variance = jnp.mean(jnp.square(difference), axis=(1, 2, 3, 4)) + 6e-7
            return jnp.mean(0.5 * jnp.log(variance))


def kl_divergence(output: Autoencoded) -> Float[Array, ""]:
    """KL divergence of N(mean, var) from N(0, 1) in nats, mean over elements (Kingma & Welling 2014, appendix B)."""
    mean, logvar = posterior(output.moments)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def psnr(difference: Pixels) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1] (peak 2), mean over clips; nothing is rounded."""
    return jnp.mean(10.0 * jnp.log10(4.0 / (jnp.mean(jnp.square(difference), axis=(1, 2, 3, 4)) + 1e-10)))


def detail_distance(difference: Pixels, num_scales: int = 3) -> Float[Array, ""]:
    """Gradient-difference loss: mean absolute difference of image gradients in time, rows and columns over octaves.

    A gradient of the difference is the difference of gradients: blur and flicker cost, a constant offset does
    not. Each octave halves rows and columns by averaging.
    """
    terms = []
    for _ in range(num_scales):
        for axis in (1, 2, 3):
            if difference.shape[axis] > 1:
                terms.append(jnp.mean(jnp.abs(jnp.diff(difference, axis=axis))))
        b, t, h, w, c = difference.shape
        difference = difference[:, :, : h // 2 * 2, : w // 2 * 2]
        difference = difference.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))
    return jnp.mean(jnp.stack(terms))


def generator_loss(critic: Critic, reconstruction: Pixels) -> Float[Array, ""]:
    """Generator loss -E[critic(reconstruction)]; the gradient reaches the VAE and not the critic."""
    graph, parameters, rest = nnx.split(critic, nnx.Param, ...)
    stopped = nnx.merge(graph, jax.lax.stop_gradient(parameters), rest)
    return -jnp.mean(stopped(reconstruction))


def critic_loss(critic: Critic, reconstruction: Pixels, pixels: Pixels) -> Float[Array, ""]:
    """Critic hinge loss (Lim & Ye 2017, arXiv:1705.02894); the gradient reaches the critic and not the VAE."""
    fake = critic(jax.lax.stop_gradient(reconstruction))
    return 0.5 * jnp.mean(nnx.relu(1.0 - critic(pixels)) + nnx.relu(1.0 + fake))
