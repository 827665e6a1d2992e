"""Samplers of masked diffusion: which masked tokens are written in a pass of the network, in what order, how many.

Since the network sees no time, only the order and the number of tokens a pass matter. One token a pass, drawn in a
random order, is the first-hitting sampler (2409.02908): exact for an exact denoiser. More a pass are drawn as if they
were independent, which is what parallel writing costs; an order says which suffer least from it.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dit_video.config.bounds import above, at_least, between
from dit_video.diffusion.masked import Absorbing, categorical, ranks

Tokens = Int[Array, "B n"]
Logits = Float[Array, "B n V"]
Places = Bool[Array, "B n"]
# (x_t, t) -> logits.
Denoise = Callable[[Array, Array], Array]


class Candidates(NamedTuple):
    """What a pass of the network proposes.

    Attributes:
        masked: which positions may be written.
        drawn: a token for each.
        log_p: of every token, after temperature and top-p.
    """

    masked: Places
    drawn: Tokens
    log_p: Logits

    @property
    def likelihood(self) -> Float[Array, "B n"]:
        """Log-probability of the tokens that are drawn."""
        return jnp.take_along_axis(self.log_p, self.drawn[..., None], -1)[..., 0]

    @property
    def entropy(self) -> Float[Array, "B n"]:
        """Entropy of each position, in nats."""
        p = jnp.exp(self.log_p)
        return -jnp.where(p > 0, p * self.log_p, 0.0).sum(-1)


class Order(abc.ABC):
    """Which of the candidates are written in a pass: at least one of each row that has any."""

    @abc.abstractmethod
    def choose(self, candidates: Candidates, keys: Key[Array, "B"], step: Int[Array, ""] | int) -> Places:
        """The positions to be written, of those that are masked; row i uses keys[i] alone, the same at every step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOrder(Order):
    """Random order: `tokens` of the masked positions, all equally likely; with 1 the first-hitting sampler."""

    tokens: int = 1

    def __post_init__(self):
        at_least(self, 1, "tokens")

    def choose(self, candidates, keys, step):
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, step), candidates.masked.shape[1:])  # noqa: E731
        return _lowest(jax.vmap(draw)(keys), candidates.masked, self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread(Order):
    """Spread order: `tokens` positions far apart, by bit reversal (van der Corput) from a random place of the row on.

    The Halton scheduler of images (2503.17076) on one axis. What depends on its neighbours has them, or they are far.
    """

    tokens: int = 8

    def __post_init__(self):
        at_least(self, 1, "tokens")

    def choose(self, candidates, keys, step):
        del step  # the order is fixed before the first pass
        n = candidates.masked.shape[1]
        turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, n))(keys)
        places = (jnp.arange(n) + turns[:, None]) % n
        return _lowest(jnp.asarray(bit_reversal(n))[places], candidates.masked, self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confidence(Order):
    """Confidence order: the `tokens` positions whose drawn token is likeliest (MaskGIT, 2202.04200; LLaDA).

    It draws from another law than the network's: what is likely anyway comes first, and variety is lost.
    """

    tokens: int = 1

    def __post_init__(self):
        at_least(self, 1, "tokens")

    def choose(self, candidates, keys, step):
        return _lowest(-candidates.likelihood, candidates.masked, self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Order):
    """Threshold: all positions whose drawn token is likelier than `probability`, the likeliest in any case (Fast-dLLM,
    2505.22618).
    """

    probability: float = 0.9

    def __post_init__(self):
        between(self, 0, 1, "probability")

    def choose(self, candidates, keys, step):
        likelihood = candidates.likelihood
        sure = candidates.masked & (likelihood > jnp.log(self.probability))
        return sure | _lowest(-likelihood, candidates.masked, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropyBound(Order):
    """Entropy bound: as many positions of least entropy as together stay, without the largest, below `bound` nats; that
    bounds the information which they have of each other (2505.24857).
    """

    bound: float = 0.5

    def __post_init__(self):
        at_least(self, 0, "bound")

    def choose(self, candidates, keys, step):
        entropy = jnp.where(candidates.masked, candidates.entropy, jnp.inf)
        order = jnp.argsort(entropy, axis=-1)
        rising = jnp.take_along_axis(entropy, order, -1)
        before = jnp.cumsum(jnp.where(jnp.isfinite(rising), rising, 0.0), -1) - rising
        fits = (before <= self.bound) & jnp.isfinite(rising)
        return jnp.take_along_axis(fits, jnp.argsort(order, axis=-1), -1)


class Written(NamedTuple):
    """State of a text that is being written.

    Attributes:
        x: tokens, and masks where none is written.
        masked: positions that are still to be written.
        steps: passes so far.
        history: x after every pass, [steps B L], where it is kept.
    """

    x: Tokens
    masked: Places
    steps: Int[Array, ""]
    history: Int[Array, "steps B L"] | None = None

    @classmethod
    def begin(cls, x: Tokens, masked: Places, *, keep: bool) -> "Written":
        """Nothing is written yet; `keep` makes room for x after every pass, of which there are no more than tokens."""
        history = jnp.tile(x[None], (x.shape[1] + 1, 1, 1)) if keep else None
        return cls(x, masked, jnp.zeros((), jnp.int32), history)

    def after(self, x: Tokens, masked: Places) -> "Written":
        steps = self.steps + 1
        history = self.history
        if history is not None:
            # All later ones too, so that those after the last pass show the finished text.
            later = (jnp.arange(len(history)) >= steps)[:, None, None]
            history = jnp.where(later, x, history)
        return Written(x, masked, steps, history)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unmasking:
    """Sampler that writes masked tokens in an order and keeps what it has written.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: of each position the likeliest tokens that together have this probability (nucleus, 1904.09751).
    """

    order: Order = RandomOrder()
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        at_least(self, 0, "temperature")
        above(self, 0, "top_p")
        between(self, 0, 1, "top_p")

    def __call__(self, denoise: Denoise, process: Absorbing, x_1: Tokens, keys: Key[Array, "B"]) -> Tokens:
        """Writes all masks of x_1, whatever else it holds."""
        return self.run(denoise, x_1, x_1 == process.mask, keys).x

    def run(
        self, denoise: Denoise, x_1: Tokens, masked: Places, keys: Key[Array, "B"], *, keep: bool = False
    ) -> Written:
        """The same with the masks that are to be written, and how many passes it took."""
        t = jnp.ones((len(x_1), 1))

        def body(state: Written) -> Written:
            return state.after(*self.write(denoise(state.x, t), state.x, state.masked, keys, state.steps))

        return jax.lax.while_loop(lambda state: state.masked.any(), body, Written.begin(x_1, masked, keep=keep))

    def write(
        self, logits: Logits, x: Tokens, masked: Places, keys: Key[Array, "B"], step: Int[Array, ""] | int
    ) -> tuple[Tokens, Places]:
        """One pass: tokens are drawn for all positions, and some of the masked ones written."""
        log_p = self.log_p(logits)
        drawing, ordering = (jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(2))
        drawn = self.draw(log_p, jax.vmap(lambda key: jax.random.fold_in(key, step))(drawing))
        chosen = self.order.choose(Candidates(masked, drawn, log_p), ordering, step)
        return jnp.where(chosen, drawn, x), masked & ~chosen

    def log_p(self, logits: Float[Array, "... V"]) -> Float[Array, "... V"]:
        """Log-probabilities after temperature and top-p, in float32."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / (self.temperature or 1.0))
        return log_p if self.top_p == 1 else jax.nn.log_softmax(nucleus(log_p, self.top_p))

    def draw(self, log_p: Float[Array, "B ... V"], keys: Key[Array, "B"]) -> Int[Array, "B ..."]:
        """Tokens drawn from log-probabilities; the likeliest at temperature 0."""
        return categorical(keys, log_p) if self.temperature else jnp.argmax(log_p, -1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remasking:
    """Sampler that masks some of what it has written again (ReMDM, 2503.00307, the loop of section 4.2).

    A third of the steps goes from t = 1 to `hold`; a third stays there, in each of which a written token is masked
    again with probability `rate` and as many are written; a third goes on to 0.
    """

    num_steps: int = 96
    rate: float = 0.02
    hold: float = 0.3
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        at_least(self, 3, "num_steps")
        between(self, 0, 1, "rate", "hold", "top_p")
        above(self, 0, "temperature", "top_p")

    def __call__(self, denoise: Denoise, process: Absorbing, x_1: Tokens, keys: Key[Array, "B"]) -> Tokens:
        """Writes all masks of x_1; what else it holds stays."""
        masked, drawer = x_1 == process.mask, Unmasking(temperature=self.temperature, top_p=self.top_p)
        third = self.num_steps // 3
        times = [np.linspace(1, self.hold, third + 1), np.full(third, self.hold)]
        grid = jnp.asarray(np.concatenate([*times, np.linspace(self.hold, 0, self.num_steps - 2 * third + 1)[1:]]))

        def body(x: Tokens, step: tuple[Array, Array, Array]) -> tuple[Tokens, None]:
            number, t, s = step
            step_keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            drawn = drawer.draw(drawer.log_p(denoise(x, jnp.full((len(x), 1), t))), step_keys)
            lots = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), x.shape[1:]))(step_keys)
            alpha_t, alpha_s = process.schedule.alpha(t), process.schedule.alpha(s)
            rate = jnp.where(t == s, jnp.minimum(self.rate, (1 - alpha_s) / jnp.maximum(alpha_t, 1e-6)), 0.0)
            # Equation 5: the marginal at s is the process's own whatever the rate is.
            write = lots * (1 - alpha_t) < alpha_s - (1 - rate) * alpha_t
            is_mask = x == process.mask
            return jnp.where(
                is_mask & write, drawn, jnp.where(masked & ~is_mask & (lots < rate), process.mask, x)
            ), None

        x, _ = jax.lax.scan(body, x_1, (jnp.arange(self.num_steps), grid[:-1], grid[1:]))
        return x


def nucleus(log_p: Float[Array, "... V"], top_p: float) -> Float[Array, "... V"]:
    """Log-probabilities, -inf where all likelier tokens together have `top_p` already."""
    order = jnp.argsort(-log_p, axis=-1)
    falling = jnp.exp(jnp.take_along_axis(log_p, order, -1))
    kept = jnp.cumsum(falling, -1) - falling < top_p
    return jnp.where(jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), -1), log_p, -jnp.inf)


def bit_reversal(n: int) -> Int[np.ndarray, "n"]:
    """Place of each of n positions in the order of van der Corput: those of any beginning of it are far apart."""
    bits = max(1, (n - 1).bit_length())
    return np.argsort(np.argsort([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)]))


def _lowest(scores: Float[Array, "B n"] | Int[Array, "B n"], masked: Places, number: int) -> Places:
    """The `number` masked positions of the lowest scores."""
    return masked & (ranks(jnp.where(masked, scores.astype(jnp.float32), jnp.inf)) < number)
