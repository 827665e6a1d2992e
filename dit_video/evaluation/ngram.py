"""N-gram model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1998, section 2.7).

A judge of text that is no neural network: what it finds likely has little to do with what those err in.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_DISCOUNT = 0.75
_MOST_BITS = 62
Rows = Int[np.ndarray, "n L"]


class _Level(NamedTuple):
    """Counts of one order: sorted n-grams with theirs, and sorted contexts with sums and numbers of continuations."""

    grams: Int[np.ndarray, "g"]
    counts: Float[np.ndarray, "g"]
    contexts: Int[np.ndarray, "c"]
    totals: Float[np.ndarray, "c"]
    kinds: Float[np.ndarray, "c"]


class KneserNey:
    """Probabilities of tokens given up to order - 1 tokens before them, counted in rows of text.

    Args of the constructor:
        order: the longest n-gram; shorter where so many tokens of the vocabulary have no number of 62 bits.
    """

    def __init__(self, rows: Rows, num_tokens: int, order: int = 6):
        bits = max(1, (num_tokens - 1).bit_length())
        self.order, self.num_tokens = max(1, min(order, _MOST_BITS // bits)), num_tokens
        grams, counts = np.unique(_grams(rows, self.order, num_tokens), return_counts=True)
        self._levels: list[_Level] = []
        for n in range(self.order, 0, -1):
            self._levels.insert(0, _level(grams, counts, num_tokens))
            # Of shorter ones in how many contexts they occur, not how often: a word of one phrase is no frequent word.
            grams, counts = np.unique(grams % num_tokens ** (n - 1), return_counts=True)

    def bits(self, rows: Rows) -> Float[np.ndarray, "n L"]:
        """-log2 p of every token given those before it in its row."""
        p = np.full(rows.shape, 1 / self.num_tokens)
        for n, level in enumerate(self._levels, 1):
            grams = _grams(rows, n, self.num_tokens).reshape(len(rows), -1)
            total, kinds = (_look_up(level.contexts, values, grams // self.num_tokens) for values in level[3:])
            count = _look_up(level.grams, level.counts, grams)
            shorter = p[:, n - 1 :]
            seen = np.maximum(total, 1)
            mixed = np.maximum(count - _DISCOUNT, 0) / seen + _DISCOUNT * kinds / seen * shorter
            p[:, n - 1 :] = np.where(total > 0, mixed, shorter)
        return -np.log2(p)


def _grams(rows: Rows, n: int, num_tokens: int) -> Int[np.ndarray, "m"]:
    """All n-grams of rows as numbers, of which the last token is the last digit."""
    length = max(rows.shape[1] - n + 1, 0)
    made = np.zeros((len(rows), length), np.int64)
    for i in range(n):
        made = made * num_tokens + rows[:, i : i + length]
    return made.reshape(-1)


def _level(grams: Int[np.ndarray, "g"], counts: Int[np.ndarray, "g"], num_tokens: int) -> _Level:
    contexts, first = np.unique(grams // num_tokens, return_index=True)
    totals = np.add.reduceat(counts, first) if len(first) else counts
    kinds = np.diff(np.append(first, len(grams)))
    return _Level(grams, counts.astype(float), contexts, totals.astype(float), kinds.astype(float))


def _look_up(
    keys: Int[np.ndarray, "k"], values: Float[np.ndarray, "k"], asked: Int[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """The value of each key that is asked for; 0 where it is none."""
    if not len(keys):
        return np.zeros(asked.shape)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, values[place], 0.0)
