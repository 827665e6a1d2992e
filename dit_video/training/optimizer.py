"""Optimizers (AdamW, Muon), learning-rate schedules, parameter groups and the exponential moving average (EMA)."""

import dataclasses
import enum
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from dit_video.config.bounds import at_least
from dit_video.distributed.sharding import LogicalAxes
from dit_video.nn.module import Params


class Decay(enum.Enum):
    """Learning-rate decay after warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to zero at the last step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameter group: parameters whose name starts with `prefix`, with their own learning rate and clipping."""

    prefix: str
    learning_rate: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (1711.05101) with linear warm-up, decay and clipping by global norm.

    Attributes:
        clip_norm: gradients of a larger global norm are scaled down to it.
        weight_decay: applied to kernels (two axes or more in one layer), not to biases, norms and embeddings.
        groups: exceptions by name; the first prefix that matches wins.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: Decay = Decay.CONSTANT
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self):
        at_least(self, 0, "warmup_steps")

    def rates(self, num_steps: int) -> optax.Schedule:
        """Learning rate by the number of updates before, of all that `groups` do not name."""
        return schedule(self.learning_rate, self.warmup_steps, self.decay, num_steps)

    def build(self, num_steps: int, axes: Mapping[str, LogicalAxes]) -> optax.GradientTransformation:
        kernels = {name: _is_kernel(labels) for name, labels in axes.items()}

        def rule(peak: float) -> optax.GradientTransformation:
            rate = schedule(peak, self.warmup_steps, self.decay, num_steps)
            return optax.adamw(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=_restrict(kernels))

        return _grouped(self.groups, self.learning_rate, rule, self.clip_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon (Jordan et al. 2024) for kernels of convolutions and stacked layers, AdamW with Nesterov momentum elsewhere.

    Orthogonalised updates are scaled to the root mean square of Adam's, 0.2 (Moonlight, 2502.16982, eq. 4), so that
    learning rates of the two are of one kind.

    Attributes:
        learning_rate: of the orthogonalised updates.
        adam_learning_rate: of embeddings, norms, biases, first and last layers; follows the same schedule.
    """

    learning_rate: float = 0.02
    adam_learning_rate: float = 2e-3
    warmup_steps: int = 0
    decay: Decay = Decay.CONSTANT
    momentum: float = 0.95
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    groups: tuple[Group, ...] = ()

    def __post_init__(self):
        at_least(self, 0, "warmup_steps")

    def rates(self, num_steps: int) -> optax.Schedule:
        """Learning rate of orthogonalised updates by the number of updates before, of all that `groups` do not name."""
        return schedule(self.learning_rate, self.warmup_steps, self.decay, num_steps)

    def build(self, num_steps: int, axes: Mapping[str, LogicalAxes]) -> optax.GradientTransformation:
        dimensions = {name: _muon_dimensions(labels) for name, labels in axes.items()}

        def rule(peak: float) -> optax.GradientTransformation:
            adam_peak = self.adam_learning_rate * peak / self.learning_rate
            return optax.contrib.muon(
                schedule(peak, self.warmup_steps, self.decay, num_steps),
                beta=self.momentum,
                weight_decay=self.weight_decay,
                adam_b2=self.b2,
                adam_learning_rate=schedule(adam_peak, self.warmup_steps, self.decay, num_steps),
                muon_weight_dimension_numbers=_restrict(dimensions),
                consistent_rms=0.2,
            )

        return _grouped(self.groups, self.learning_rate, rule, self.clip_norm)


Optimizer = AdamW | Muon


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMA:
    """Exponential moving average of the parameters: ema <- d ema + (1 - d) params.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that a short run is not dominated by its
    initialisation (the ramp of TensorFlow's ExponentialMovingAverage).
    """

    decay: float = 0.9999

    def update(self, ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        n = step.astype(jnp.float32)
        decay = jnp.minimum(self.decay, (1 + n) / (10 + n))
        return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def schedule(peak: float, warmup_steps: int, decay: Decay, num_steps: int) -> optax.Schedule:
    """Learning-rate schedule: linear warm-up over `warmup_steps`, then constant or cosine decay to 0 at `num_steps`."""
    if decay is Decay.COSINE:
        after = optax.cosine_decay_schedule(peak, max(1, num_steps - warmup_steps))
    else:
        after = optax.constant_schedule(peak)
    if not warmup_steps:
        return after

    def warm(step: ArrayLike) -> Array:
        return peak * (jnp.asarray(step) + 1) / (warmup_steps + 1)

    return optax.join_schedules([warm, after], [warmup_steps])


def num_updates(opt_state: optax.OptState) -> int:
    """Number of updates that an optimizer's state has seen, which are the steps that were not skipped."""
    return int(optax.tree.get_all_with_path(opt_state, "count")[0][1])


def _grouped(groups: tuple[Group, ...], rate: float, rule, clip_norm: float) -> optax.GradientTransformation:
    def chain(peak: float) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(clip_norm), rule(peak))

    if not groups:
        return chain(rate)

    def label(params: Params) -> dict[str, str]:
        return {n: next((g.prefix for g in groups if n.startswith(g.prefix)), "") for n in params}

    rules: dict[Hashable, optax.GradientTransformation] = {g.prefix: chain(g.learning_rate) for g in groups}
    return optax.partition({"": chain(rate)} | rules, label)


def _restrict(values: Mapping[str, object]):
    """A function of the params, as a group sees them: other groups' leaves are optax.MaskedNode there."""

    def select(params):
        masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
        return {n: optax.MaskedNode() if masked(p) else values[n] for n, p in params.items()}

    return select


def _is_kernel(axes: LogicalAxes) -> bool:
    """Whether a parameter is a weight matrix or a convolution kernel; biases and embedding tables are not."""
    streams = "embed" in axes or "channels_in" in axes
    return streams and sum(a != "layers" for a in axes) >= 2 and "vocab" not in axes


def _muon_dimensions(axes: LogicalAxes) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a kernel are its input and its output; None where Adam is the better rule.

    In a stacked layer the model width is always "embed": a kernel that starts with it maps from the residual stream,
    one that ends with it maps back; axes without a name (q, k, v) hold separate matrices. A convolution's input are its
    taps and channels.
    """
    if axes[-1] in ("channels_out", "data_channels") and len(axes) > 1:
        return optax.contrib.MuonDimensionNumbers(tuple(range(len(axes) - 1)), (len(axes) - 1,))
    if axes[:1] != ("layers",) or not _is_kernel(axes):
        return None
    named = [i for i, a in enumerate(axes) if a not in ("layers", None)]
    split = 1 if axes[named[0]] == "embed" else len(named) - 1
    return optax.contrib.MuonDimensionNumbers(tuple(named[:split]), tuple(named[split:]))
