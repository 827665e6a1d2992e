"""Masked diffusion of tokens: the absorbing-state process (MDLM, 2406.07524; MD4, 2406.04329; BD3-LM, 2503.09573).

A token of x_t is that of x_0 with probability alpha(t), else the mask token, which it stays. A network says for every
masked position which token stands there; the negative log-likelihood per token is bounded by

    E_t [ -alpha'(t) / (1 - alpha(t)) * sum over masked i of -log p(x_0[i] | x_t) ]     (MDLM, equation 10)

whatever the schedule is. The mask token is no outcome and what is not masked is copied (SUBS): the network has a logit
for every token but the mask, and only masked positions bear a loss.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dit_video.arrays import Mean
from dit_video.config.bounds import at_least, between
from dit_video.diffusion.process import Known, Metrics
from dit_video.diffusion.timestep_spacing import Spacing

Tokens = Int[Array, "B L"]
Logits = Float[Array, "B L V"]
Level = Float[Array, "..."]


class MaskingSchedule(abc.ABC):
    """How the share of tokens that are not masked falls from 1 at t = 0 to 0 at t = 1."""

    @abc.abstractmethod
    def alpha(self, t: Level) -> Level:
        """Probability that a token is not masked."""

    @abc.abstractmethod
    def weight(self, t: Level) -> Level:
        """-alpha'(t) / (1 - alpha(t)): what a masked token at time t weighs in the bound."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinear(MaskingSchedule):
    """Log-linear schedule, alpha = 1 - t (MDLM, appendix E.1): the share that is masked is the time."""

    def alpha(self, t: Level) -> Level:
        return 1 - t

    def weight(self, t: Level) -> Level:
        return 1 / t


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineMasking(MaskingSchedule):
    """Cosine schedule, alpha = 1 - cos(pi (1 - t) / 2) (MD4, table 1): more of training at few masks."""

    def alpha(self, t: Level) -> Level:
        return 1 - jnp.cos(jnp.pi / 2 * (1 - t))

    def weight(self, t: Level) -> Level:
        # The tangent of (1 - t) pi / 2, written so that float32 keeps it finite at small t.
        return jnp.pi / 2 / jnp.tan(jnp.pi / 2 * t)


class MaskedExample(NamedTuple):
    """A training example of masked diffusion.

    Attributes:
        x_t: tokens, some of them masked.
        t: of each token; the network need not see it, for it can count the masks.
        target: x_0.
        weight: of each token's cross-entropy, 0 where it is not masked.
        counted: which tokens are to be written at all, over whose number the loss is averaged.
    """

    x_t: Tokens
    t: Float[Array, "B L"]
    target: Tokens
    weight: Float[Array, "B L"]
    counted: Bool[Array, "B L"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Absorbing:
    """Absorbing-state process over tokens 0 ... num_tokens - 1; the mask token is number `num_tokens`.

    Attributes:
        block_size: every block of so many tokens has its own time (BD3-LM); None: one for the sequence. Of blocks of
            one token that token is always masked, which gives the same bound without variance.
        times: of training; drawn evenly between these. What is left out below is left out of the bound as well: of
            nats per token at most that share. Narrower ones lower the variance of short blocks (BD3-LM, table 8), and
            the loss is then no bound.
    """

    num_tokens: int
    schedule: MaskingSchedule = LogLinear()
    block_size: int | None = None
    times: tuple[float, float] = (1e-3, 1.0)

    def __post_init__(self):
        at_least(self, 1, "num_tokens", "block_size")
        between(self, 1e-6, 1, "times")
        if self.times[0] >= self.times[1]:
            raise ValueError(f"Absorbing.times={self.times}: the first must be the smaller")

    @property
    def mask(self) -> int:
        """The mask token."""
        return self.num_tokens

    def prior(self, keys: Key[Array, "B"], shape: tuple[int, ...]) -> Tokens:
        """Masks."""
        return jnp.full((len(keys), *shape), self.mask, jnp.int32)

    def corrupt(self, rng: Key[Array, ""], x_0: Tokens, known: Known | None = None) -> MaskedExample:
        """Masks tokens at times of low discrepancy over the blocks of the batch; what is `known` is never masked."""
        drawing, masking = jax.random.split(rng)
        size = self._block_size(x_0)
        blocks = jnp.arange(len(x_0) * -(-x_0.shape[1] // size)).reshape(len(x_0), -1)
        # Of each block one of as many equal parts of [0, 1), shifted together (MDLM's antithetic sampling).
        u = (jax.random.uniform(drawing) + blocks / blocks.size) % 1
        t = self.times[0] + (self.times[1] - self.times[0]) * u
        t = jnp.ones_like(t) if size == 1 else t
        t = _over_tokens(t, size, x_0.shape[1])
        masked = jax.random.uniform(masking, x_0.shape) >= self.schedule.alpha(t)
        weight = jnp.ones_like(t) if size == 1 else self.schedule.weight(t)
        return self._example(x_0, t, masked, weight, known)

    def corrupt_count(
        self, keys: Key[Array, "B"], x_0: Tokens, known: Known | None, draw: Int[Array, ""] | int, num_draws: int
    ) -> MaskedExample:
        """Masks exactly k of the n tokens of each block, k even in 1 ... n, with the weight n / k: the same bound in
        expectation as that of times, with a fraction of its variance (LLaDA, 2502.09992, equation 6).

        Args:
            keys: row i uses keys[i] alone.
            draw: number of this draw among `num_draws` of each row, over which k is stratified.
        """
        size = self._block_size(x_0)
        counted = _counted(x_0, known)
        cut = _blocks(counted, size)  # [B n Q]
        n = cut.sum(-1)

        def of_row(key: Key[Array, ""]) -> tuple[Array, Array]:
            offset = jax.random.uniform(key, cut.shape[1:2])
            shuffled = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 1), draw), cut.shape[1:])
            return offset, shuffled

        offset, lots = jax.vmap(of_row)(keys)
        k = 1 + jnp.floor((offset + draw / num_draws) % 1 * n).astype(jnp.int32)
        masked = ranks(jnp.where(cut, lots, 2.0)) < jnp.minimum(k, n)[..., None]
        weight = n / jnp.maximum(k, 1)
        length = x_0.shape[1]
        t = _over_tokens((k / jnp.maximum(n, 1)).astype(jnp.float32), size, length)
        masked = masked.reshape(len(x_0), -1)[:, :length]
        return self._example(x_0, t, masked, _over_tokens(weight, size, length), known)

    def loss(
        self, output: Logits, corrupted: MaskedExample, known: Known | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """The bound in nats per token, averaged over the tokens that are to be written; float32."""
        del known  # what is known weighs nothing already
        nats = self.nats(output, corrupted)
        count = jnp.maximum(corrupted.counted.sum(), 1)
        masked = corrupted.weight > 0
        of_masked = -_log_likelihood(output, corrupted.target)
        return nats.sum() / count, {
            "masked_nats": Mean(jnp.where(masked, of_masked, 0).sum(), masked.sum().astype(jnp.float32))
        }

    def nats(self, output: Logits, corrupted: MaskedExample) -> Float[Array, "B"]:
        """The bound of each row, in nats."""
        return -(_log_likelihood(output, corrupted.target) * corrupted.weight).sum(-1)

    def step(self, output: Logits, x_t: Tokens, t: Level, s: Level, keys: Key[Array, "B"]) -> Tokens:
        """Ancestral step: every mask turns into a token with probability (alpha_s - alpha_t) / (1 - alpha_t)."""
        drawn = categorical(keys, output)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        lots = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), x_t.shape[1:]))(keys)
        return jnp.where((x_t == self.mask) & (lots * (1 - alpha_t) < alpha_s - alpha_t), drawn, x_t)

    def time_grid(self, num_steps: int, num_positions: int, spacing: Spacing) -> Float[Array, "steps"]:
        """The spacing's own: text needs no shift for its length."""
        del num_positions
        return jnp.asarray(spacing.times(num_steps), jnp.float32)

    def _block_size(self, x: Tokens) -> int:
        return self.block_size or x.shape[1]

    def _example(self, x_0: Tokens, t: Array, masked: Array, weight: Array, known: Known | None) -> MaskedExample:
        counted = _counted(x_0, known)
        masked = masked & counted
        x_t = jnp.where(masked, self.mask, x_0)
        return MaskedExample(x_t, t, x_0, jnp.where(masked, weight, 0.0).astype(jnp.float32), counted)


def next_token_nats(output: Logits, x_0: Tokens, counted: Bool[Array, "B L"]) -> Float[Array, "B"]:
    """Exact negative log-likelihood of each row under an autoregressive network, in nats.

    Args:
        output: of each position, by a network that sees only tokens before it.
    """
    return -(_log_likelihood(output, x_0) * counted).sum(-1)


def categorical(keys: Key[Array, "B"], logits: Float[Array, "B ... V"]) -> Int[Array, "B ..."]:
    """Draws from softmax(logits) by Gumbel noise in float32, row i by keys[i].

    Of float32 uniforms with 23 bits the noise is cut off at 16, which is as if the temperature were lower (2409.02908);
    `mode="high"` has twice the bits.
    """
    draw = lambda key, row: jax.random.categorical(key, row.astype(jnp.float32), mode="high")  # noqa: E731
    return jax.vmap(draw)(keys, logits).astype(jnp.int32)


def ranks(scores: Float[Array, "... n"]) -> Int[Array, "... n"]:
    """Place of each score in rising order, from 0; of equal ones the first comes first."""
    return jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)


def _log_likelihood(logits: Logits, tokens: Tokens) -> Float[Array, "B L"]:
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # A token that is none, of padding, has some likelihood: it is weighed with 0.
    return jnp.take_along_axis(log_p, jnp.clip(tokens, 0, logits.shape[-1] - 1)[..., None], -1)[..., 0]


def _counted(x_0: Tokens, known: Known | None) -> Bool[Array, "B L"]:
    return jnp.ones(x_0.shape, bool) if known is None else jnp.broadcast_to(~known.mask, x_0.shape)


def _over_tokens(of_blocks: Float[Array, "B n"], size: int, length: int) -> Float[Array, "B L"]:
    return jnp.repeat(of_blocks, size, axis=1)[:, :length]


def _blocks(x: Array, size: int) -> Array:
    """[B L] as blocks [B n Q]; the last is filled up with zeros."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size))).reshape(len(x), -1, size)
