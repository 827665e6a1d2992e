"""How the probability of a text is factorised: all of it at once, block by block, or token by token.

Three values of one field of one task on one network: what differs is the attention mask, what is masked in training,
and the loop that writes.
"""

import abc
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dit_video.config.bounds import at_least
from dit_video.data.record import TokenRow
from dit_video.diffusion.masked import Absorbing, LogLinear, MaskedExample, MaskingSchedule, next_token_nats
from dit_video.diffusion.process import Known
from dit_video.diffusion.unmasking import Remasking, Unmasking, Written
from dit_video.dit.text_transformer import TextTransformer
from dit_video.nn.attention_mask import FULL, BlockCausal, Packed, TwoCopy
from dit_video.tasks import diffuse
from dit_video.tasks.task import Metrics

Tokens = Int[Array, "B L"]
Writer = Unmasking | Remasking


class Prompt(NamedTuple):
    """What is to be written, and what is there.

    Attributes:
        x: tokens that are known, masks elsewhere.
        masked: which masks are to be written; the others are padding.
        documents: 0 for padding.
    """

    x: Tokens
    masked: Bool[Array, "B L"]
    documents: Int[Array, "B L"]


class Factorization(abc.ABC):
    """How p(text) is made up of conditional probabilities of tokens."""

    @property
    def block_size(self) -> int:
        """Tokens of a block: rows and documents begin at multiples of it."""
        return 1

    @abc.abstractmethod
    def loss(self, model: TextTransformer, row: TokenRow, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The training loss in nats per token."""

    @abc.abstractmethod
    def nats(self, model: TextTransformer, row: TokenRow, keys: Key[Array, "B"], num_draws: int) -> Float[Array, "B"]:
        """Negative log-likelihood of each row in nats, or a bound of it from so many draws of what is masked."""

    @abc.abstractmethod
    def write(
        self, model: TextTransformer, prompt: Prompt, sampler: Writer, keys: Key[Array, "B"], *, keep: bool
    ) -> Written:
        """Writes what is masked in a prompt; `keep` asks for what stood there after every pass."""

    def check_sampler(self, sampler: Writer) -> None:  # noqa: B027 (most take any)
        """Raises ValueError where a sampler cannot write so."""

    def check_prompt(self, known: Bool[np.ndarray, "B L"]) -> None:  # noqa: B027 (most take any)
        """Raises ValueError where what is known stands in places that cannot be written around."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(Factorization):
    """Masked diffusion of the whole row at once: every token sees all others (MDLM, 2406.07524)."""

    schedule: MaskingSchedule = LogLinear()
    times: tuple[float, float] = (1e-3, 1.0)

    def process(self, num_tokens: int) -> Absorbing:
        return Absorbing(num_tokens=num_tokens, schedule=self.schedule, times=self.times)

    def predict(self, model: TextTransformer, x_t: Tokens, row: TokenRow) -> Float[Array, "B L V"]:
        """Logits of every position from what is not masked."""
        return model(x_t, Packed(jnp.asarray(row.documents), FULL))

    def loss(self, model, row, rng):
        process, x_0, known = self._read(model, row)
        return diffuse.training_loss(process, lambda x_t, t: self.predict(model, x_t, row), x_0, rng, known)

    def nats(self, model, row, keys, num_draws):
        process, x_0, known = self._read(model, row)

        def draw(number: Int[Array, ""]) -> Float[Array, "B"]:
            corrupted: MaskedExample = process.corrupt_count(keys, x_0, known, number, num_draws)
            return process.nats(self.predict(model, corrupted.x_t, row), corrupted)

        return jax.lax.map(draw, jnp.arange(num_draws)).mean(0)

    def write(self, model, prompt, sampler, keys, *, keep):
        mask = Packed(prompt.documents, FULL)

        def denoise(x_t: Tokens, t: Array) -> Array:
            del t  # the network counts the masks
            return model(x_t, mask)

        if isinstance(sampler, Unmasking):
            return sampler.run(denoise, prompt.x, prompt.masked, keys, keep=keep)
        x = sampler(denoise, self.process(_vocabulary(model)), prompt.x, keys)
        return Written(x, jnp.zeros_like(prompt.masked), jnp.asarray(sampler.num_steps), x[None] if keep else None)

    def _read(self, model: TextTransformer, row: TokenRow) -> tuple[Absorbing, Tokens, Known]:
        """The process, and x_0 in which padding is known: it is neither masked nor counted."""
        x_0 = jnp.asarray(row.tokens)
        return self.process(_vocabulary(model)), x_0, Known(x_0, jnp.asarray(row.documents) == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks(Masked):
    """Block diffusion (BD3-LM, 2503.09573): masked diffusion of a block, given the whole of all blocks before it.

    One pass over a noisy and a clean copy trains on all blocks. What is written stays as it is, so it is kept in a
    key/value cache, and a text may be of any length. Blocks of one token are autoregression.
    """

    size: int = 16

    def __post_init__(self):
        at_least(self, 1, "size")

    @property
    def block_size(self) -> int:
        return self.size

    def process(self, num_tokens: int) -> Absorbing:
        return dataclasses.replace(super().process(num_tokens), block_size=self.size)

    def predict(self, model, x_t, row):
        length = x_t.shape[1]
        both = jnp.concatenate([x_t, jnp.asarray(row.tokens)], axis=1)
        documents = jnp.concatenate([jnp.asarray(row.documents)] * 2, axis=1)
        mask = Packed(documents, TwoCopy(self.size, length))
        return model(both, mask, np.tile(np.arange(length), 2))[:, :length]

    def check_sampler(self, sampler):
        if not isinstance(sampler, Unmasking):
            raise ValueError(f"sampler={sampler}: what a block has written is kept; take Unmasking, or Masked() text")

    def write(self, model, prompt, sampler, keys, *, keep):
        """Block by block. The first pass of a block also commits the one before it to the cache, so that committing
        costs no pass of its own.
        """
        B, length = prompt.x.shape
        size, layers, mask = self.size, model.layers(), BlockCausal(self.size)
        num_blocks = -(-length // size)
        pad = num_blocks * size - length
        x = jnp.pad(prompt.x, ((0, 0), (0, pad)), constant_values=_vocabulary(model))
        masked = jnp.pad(prompt.masked, ((0, 0), (0, pad)))
        state = Written.begin(x, masked, keep=keep)
        cache = model.empty_cache(B, num_blocks * size)

        def block_of(array: Array, number: Array | int, num: int = 1) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, number * size, num * size, axis=1)

        def one_pass(carry: tuple[Written, Any], number: Array | int, first: Array | int, num: int):
            """A pass over `num` blocks from `first` on, the last of which is number `number` and is written in."""
            state, cache = carry
            tokens = block_of(state.x, first, num)
            logits, cache = model.cached(layers, tokens, first * size, cache, mask)
            block_keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            written = sampler.write(
                logits[:, -size:], block_of(state.x, number), block_of(state.masked, number), block_keys, state.steps
            )
            new = (jax.lax.dynamic_update_slice_in_dim(old, part, number * size, axis=1)
                   for old, part in zip((state.x, state.masked), written))  # fmt: skip
            return state.after(*new), cache

        def rest(carry: tuple[Written, Any], number: Array | int):
            return jax.lax.while_loop(
                lambda carry: block_of(carry[0].masked, number).any(),
                lambda carry: one_pass(carry, number, number, 1),
                carry,
            )

        def next_block(number: Array, carry: tuple[Written, Any]):
            return rest(one_pass(carry, number, number - 1, 2), number)

        state, _ = jax.lax.fori_loop(1, num_blocks, next_block, rest((state, cache), 0))
        history = None if state.history is None else state.history[:, :, :length]
        return Written(state.x[:, :length], state.masked[:, :length], state.steps, history)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoregressive(Factorization):
    """Autoregression: every token given all before it; the mask token stands before the first of a document."""

    def loss(self, model, row, rng):
        del rng  # nothing is drawn
        counted = jnp.asarray(row.documents) > 0
        return self._nats(model, row).sum() / jnp.maximum(counted.sum(), 1), {}

    def nats(self, model, row, keys, num_draws):
        del keys, num_draws
        return self._nats(model, row)

    def _nats(self, model: TextTransformer, row: TokenRow) -> Float[Array, "B"]:
        tokens, documents = jnp.asarray(row.tokens), jnp.asarray(row.documents)
        logits = model(_before(tokens, documents, _vocabulary(model)), Packed(documents, BlockCausal(1)))
        return next_token_nats(logits, tokens, documents > 0)

    def check_sampler(self, sampler):
        if not isinstance(sampler, Unmasking):
            raise ValueError(f"sampler={sampler}: a text that is written from left to right is masked nowhere again")

    def check_prompt(self, known):
        if (np.diff(known.astype(int), axis=1) > 0).any():
            raise ValueError(
                "an autoregressive run writes from left to right and sees nothing behind a gap; give --prompt, or take "
                "a run with factorization=Masked() or Blocks()"
            )

    def write(self, model, prompt, sampler, keys, *, keep):
        """Token by token with a cache of one size, in one loop; a prompt is read in one pass before it."""
        B, length = prompt.x.shape
        layers, mask = model.layers(), BlockCausal(1)
        inputs = _before(prompt.x, prompt.documents, _vocabulary(model))
        # As many tokens as are known at the beginning of every row.
        num_known = jnp.cumprod((~prompt.masked.any(0)).astype(jnp.int32)).sum()
        cache = model.empty_cache(B, length)
        read = lambda: model.cached(layers, inputs, 0, cache, mask)[1]  # noqa: E731
        cache = jax.lax.cond(num_known > 0, read, lambda: cache)

        def body(carry: tuple[Written, Tokens, Any]):
            state, token, cache = carry
            i = num_known + state.steps
            logits, cache = model.cached(layers, token, i, cache, mask)
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
            drawn = sampler.draw(sampler.log_p(logits), step_keys)
            column = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=i, slice_size=1, axis=1)
            new = jnp.where(column(state.masked), drawn, column(state.x))
            x = jax.lax.dynamic_update_slice_in_dim(state.x, new, i, axis=1)
            masked = jax.lax.dynamic_update_slice_in_dim(state.masked, jnp.zeros_like(new, bool), i, axis=1)
            return state.after(x, masked), new, cache

        def more(carry: tuple[Written, Tokens, Any]):
            return carry[0].masked.any()

        token = jax.lax.dynamic_slice_in_dim(inputs, jnp.minimum(num_known, length - 1), 1, axis=1)
        begin = Written.begin(prompt.x, prompt.masked, keep=keep)
        return jax.lax.while_loop(more, body, (begin, token, cache))[0]


def _before(tokens: Tokens, documents: Int[Array, "B L"], mask: int) -> Tokens:
    """The token before each, the mask token before the first of a document."""
    shifted, of_shifted = (jnp.pad(x, ((0, 0), (1, 0)))[:, :-1] for x in (tokens, documents))
    first = (of_shifted != documents).at[:, 0].set(True)
    return jnp.where(first, mask, shifted)


def _vocabulary(model: TextTransformer) -> int:
    """Number of tokens, which is also that of the mask token."""
    return model.embedding[...].shape[-2] - 1
