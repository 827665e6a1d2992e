"""Attention masks as values: what a token may attend to, as a rule about the places of two tokens and never an array.

    Full         every token to every token
    BlockCausal  blocks in a row, which may be frames; causal attention is blocks of one token
    TwoCopy      a noisy and a clean copy of such a sequence, trained on in one pass
    Packed       several documents or clips in one row, each by itself under one of these
    Interleaved  one of these for tokens of video in the order of `patchify`

A mask is a pytree, whose leaves have the rows of a batch [B N]. Its rules work on NumPy's and on JAX's arrays.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dit_video.config.bounds import at_least

_STATIC = {"static": True}  # no leaf of the pytree
_UNLIMITED = np.iinfo(np.int32).max
Indices = Int[Array | np.ndarray, "..."]
# What a rule asks of tokens: a tree of arrays, each of the tokens' shape or of [B *shape].
Places = Any


class Span(NamedTuple):
    """Stretches of a sequence, each from its first to its last token; empty where the last comes before the first."""

    first: Int[np.ndarray, "..."]
    last: Int[np.ndarray, "..."]


class AttentionMask(abc.ABC):
    """Which tokens of a sequence may attend to which; tokens are their indices in it."""

    def allowed(
        self, queries: Int[Array | np.ndarray, "q"], keys: Int[Array | np.ndarray, "k"]
    ) -> Bool[Array | np.ndarray, "*B q k"]:
        """Whether each query may attend to each key: one answer for a batch, or one for each of its rows."""
        return self.sees(
            jax.tree.map(lambda x: x[..., :, None], self.places(queries)),
            jax.tree.map(lambda x: x[..., None, :], self.places(keys)),
        )

    @abc.abstractmethod
    def places(self, tokens: Indices) -> Places:
        """Where tokens stand, which is all that `sees` asks of them; found once for a token, not for every pair."""

    @abc.abstractmethod
    def sees(self, query: Places, key: Places) -> Bool[Array | np.ndarray, "..."]:
        """Whether queries at some places may attend to keys at others; arrays that broadcast."""

    @abc.abstractmethod
    def any_allowed(self, queries: Span, keys: Span) -> Bool[np.ndarray, "..."]:
        """Whether some query of a stretch may attend to some key of another: where none may, nothing is computed.

        Stretches of tokens as they stand in `order`. It may be true where none may, never false where one may.
        """

    def order(self, num_tokens: int) -> Int[np.ndarray, "N"]:
        """All tokens, so ordered that those that see each other stand together."""
        return np.arange(num_tokens)

    def check(self, num_tokens: int) -> None:  # noqa: B027 (most masks are for any length)
        """Raises ValueError if the mask is for sequences of another length."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full(AttentionMask):
    """Every token attends to every token."""

    def places(self, tokens):
        return tokens

    def sees(self, query, key):
        return np.ones(np.broadcast_shapes(query.shape, key.shape), bool)

    def any_allowed(self, queries, keys):
        return _nonempty(queries) & _nonempty(keys)


FULL = Full()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockCausal(AttentionMask):
    """Every token attends to the whole of its own block and of those before it.

    Attributes:
        block_size: tokens of a block, for video those of a frame; 1 is causal attention. The last may be shorter.
        window: how many blocks are visible, the own one included; None for all.
    """

    block_size: int = dataclasses.field(metadata=_STATIC)
    window: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __post_init__(self):
        at_least(self, 1, "block_size", "window")

    def places(self, tokens):
        return tokens // self.block_size

    def sees(self, query, key):
        behind = query - key
        return (behind >= 0) & (behind < _reach(self.window))

    def any_allowed(self, queries, keys):
        return _any_behind(queries, keys, self.block_size, 0, _reach(self.window))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TwoCopy(AttentionMask):
    """The noisy copy x_t of a sequence and then its clean copy x_0, so that one pass trains on every block, given clean
    blocks before it: block diffusion (BD3-LM, Arriola et al., 2503.09573, section 3) and teacher forcing of video.

    A noisy block attends to itself and to clean blocks before it, a clean block to itself and to clean blocks before.

    Attributes:
        block_size: tokens of a block, for video those of a frame. The last may be shorter.
        num_tokens: of one copy.
        window: how many blocks are visible, the own one included; None for all.
    """

    block_size: int = dataclasses.field(metadata=_STATIC)
    num_tokens: int = dataclasses.field(metadata=_STATIC)
    window: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __post_init__(self):
        at_least(self, 1, "block_size", "num_tokens", "window")

    def check(self, num_tokens):
        if num_tokens != 2 * self.num_tokens:
            raise ValueError(f"{num_tokens} tokens under {self}: there must be two copies of num_tokens each")

    def places(self, tokens):
        return tokens < self.num_tokens, tokens % self.num_tokens // self.block_size

    def sees(self, query, key):
        (noisy_query, query), (noisy_key, key) = query, key
        behind = query - key
        itself = noisy_query & noisy_key & (behind == 0)
        return itself | ~noisy_key & (behind >= noisy_query) & (behind < _reach(self.window))

    def any_allowed(self, queries, keys):
        (noisy_query, clean_query), (noisy_key, clean_key) = self._copies(queries), self._copies(keys)
        return (
            _any_behind(noisy_query, noisy_key, self.block_size, 0, 1)
            | _any_behind(noisy_query, clean_key, self.block_size, 1, _reach(self.window))
            | _any_behind(clean_query, clean_key, self.block_size, 0, _reach(self.window))
        )

    def _copies(self, tokens: Span) -> tuple[Span, Span]:
        """The parts of stretches in the noisy and in the clean copy, counted from where the copy begins."""
        noisy = Span(tokens.first, np.minimum(tokens.last, self.num_tokens - 1))
        return noisy, Span(np.maximum(tokens.first - self.num_tokens, 0), tokens.last - self.num_tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed(AttentionMask):
    """Several documents or clips in one row: tokens attend within their own only, and there as `within` says.

    Attributes:
        segment_ids: int [B N], the number of each token's document, from 1, as Grain packs them; 0 is padding, which
            attends to nothing (its output is zero) and which nothing attends to. Under `TwoCopy` both copies of a token
            have its number.
        within: by indices in the row. Its blocks are counted from there: a document has whole ones if it begins at a
            multiple of their size.
    """

    segment_ids: Any  # of no checked type: JAX rebuilds pytrees with placeholders in place of arrays
    within: AttentionMask = FULL

    def check(self, num_tokens):
        if np.shape(self.segment_ids)[-1] != num_tokens:
            raise ValueError(
                f"Packed.segment_ids of shape {np.shape(self.segment_ids)} for rows of {num_tokens} tokens: "
                "give every token the number of its document"
            )
        self.within.check(num_tokens)

    def order(self, num_tokens):
        return self.within.order(num_tokens)

    def places(self, tokens):
        return jnp.asarray(self.segment_ids)[:, tokens], self.within.places(tokens)

    def sees(self, query, key):
        (of_query, query), (of_key, key) = query, key
        return (of_query == of_key) & (of_query > 0) & self.within.sees(query, key)

    def any_allowed(self, queries, keys):
        return self.within.any_allowed(queries, keys)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interleaved(AttentionMask):
    """Tokens of video in the order of `patchify`: a place with all its frames, then the next.

    Attributes:
        mask: for the same tokens frame by frame, each with all its places: blocks of `num_places` tokens are frames.
        num_places: in each frame.
        num_frames: under `TwoCopy` noisy and clean ones together.
    """

    mask: AttentionMask
    num_places: int = dataclasses.field(metadata=_STATIC)
    num_frames: int = dataclasses.field(metadata=_STATIC)

    def __post_init__(self):
        at_least(self, 1, "num_places", "num_frames")

    def check(self, num_tokens):
        if num_tokens != self.num_places * self.num_frames:
            raise ValueError(f"{num_tokens} tokens under {self}: there must be num_places x num_frames")
        self.mask.check(num_tokens)

    def order(self, num_tokens):
        tokens = np.arange(num_tokens).reshape(self.num_places, self.num_frames)
        return tokens.T.reshape(-1)[self.mask.order(num_tokens)]

    def places(self, tokens):
        return self.mask.places(tokens % self.num_frames * self.num_places + tokens // self.num_frames)

    def sees(self, query, key):
        return self.mask.sees(query, key)

    def any_allowed(self, queries, keys):
        return self.mask.any_allowed(queries, keys)


def _reach(window: int | None) -> int:
    return _UNLIMITED if window is None else window


def _any_behind(queries: Span, keys: Span, block_size: int, least: int, below: int) -> Bool[np.ndarray, "..."]:
    """Whether some key's block is at least `least` and less than `below` blocks behind that of some query."""
    nearest = queries.first // block_size - keys.last // block_size
    farthest = queries.last // block_size - keys.first // block_size
    return _nonempty(queries) & _nonempty(keys) & (farthest >= least) & (nearest < below)


def _nonempty(tokens: Span) -> Bool[np.ndarray, "..."]:
    return tokens.first <= tokens.last
