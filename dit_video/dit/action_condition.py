"""Conditions on actions, one for each frame: what was pressed between a frame and the one before it.

They come frame by frame like the noise level, and modulate the tokens of their frame. Where a codec puts s frames into
a latent frame, that has the s actions which led to its frames; the first latent frame is of one frame, and has one.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from dit_video.config.bounds import at_least
from dit_video.data.batch import require_signal
from dit_video.data.signals import ACTION
from dit_video.distributed.sharding import constrain
from dit_video.dit.condition import Condition, Signals
from dit_video.nn.embed import VectorEmbedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionCondition(Condition):
    """Condition on the actions of frames: action f led from frame f - 1 to frame f.

    Attributes:
        frames_per_latent: s, frames that share a latent frame: `codec.vae.compression[0]`.
    """

    frames_per_latent: int = 1

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "frames_per_latent")

    @property
    def reads(self) -> str:
        return ACTION

    @property
    def by_frame(self) -> bool:
        return True

    @property
    @abc.abstractmethod
    def none(self) -> Any:
        """Host array of the action of a frame of which none is known."""

    @abc.abstractmethod
    def grouped(self, actions: Any, *, first: bool) -> Array:
        """Actions of frames [B n ...] as the network takes them: those of each latent frame [B n/s s ...].

        Args:
            first: they begin the stream: the first is of a latent frame of its own, which lacks the s - 1 before it.
        """

    def read(self, signals: Signals) -> Array:
        """Actions of each latent frame, in the order of its frames."""
        return self.grouped(require_signal(signals, ACTION), first=True)

    def empty(self, cond: Array) -> Array:
        return jnp.broadcast_to(jnp.asarray(self._null), cond.shape)

    @property
    @abc.abstractmethod
    def _null(self) -> Any:
        """What the network takes for an action that is not known."""

    def _in_groups(self, actions: Array, *, first: bool) -> Array:
        lacking = self.frames_per_latent - 1 if first else 0
        if (actions.shape[1] + lacking) % self.frames_per_latent:
            rule = "1 + s k" if first else "s k"
            raise ValueError(
                f"Batch.signals[{ACTION!r}]: actions of {actions.shape[1]} frames; with "
                f"config.task.condition.frames_per_latent={self.frames_per_latent} there must be {rule}"
            )
        before = jnp.broadcast_to(jnp.asarray(self._null, actions.dtype), (len(actions), lacking, *actions.shape[2:]))
        whole = jnp.concatenate([before, actions], axis=1)
        return whole.reshape(len(whole), -1, self.frames_per_latent, *actions.shape[2:])

    def check_frames(self, frames_per_latent: int) -> None:
        if frames_per_latent != self.frames_per_latent:
            raise ValueError(
                f"config.task.condition.frames_per_latent={self.frames_per_latent}: the codec puts {frames_per_latent} "
                "frames into a latent frame; set it so"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteActions(ActionCondition):
    """Condition on actions that are numbers 0 to `num_actions` - 1, such as keys; -1 where none is known."""

    num_actions: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "num_actions")

    @property
    def none(self) -> Int[np.ndarray, ""]:
        return np.array(-1, np.int32)

    @property
    def _null(self) -> int:
        return self.num_actions

    def grouped(self, actions: Int[Array | np.ndarray, "B n"], *, first: bool) -> Int[Array, "B m s"]:
        actions = jnp.asarray(actions)
        # One that is no action is beyond the table, also where it would be the row of none.
        beyond = jnp.where(actions < self.num_actions, actions, self.num_actions + 1)
        return self._in_groups(jnp.where(actions < 0, self.num_actions, beyond), first=first)

    def random(self, rng: np.random.Generator, signals: Signals) -> Signals:
        return {**signals, ACTION: rng.integers(0, self.num_actions, np.shape(signals[ACTION]), np.int32)}

    def inputs(self) -> Mapping[str, str]:
        return {"action": f"of each frame of a latent frame: 0 to {self.num_actions - 1}, {self.num_actions} for none"}

    def check(self, signals: Signals) -> None:
        actions = np.asarray(require_signal(signals, ACTION))
        if actions.size and actions.max() >= self.num_actions:
            raise ValueError(f"action {actions.max()}: must be a number under num_actions={self.num_actions}")

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> "ActionEmbedding":
        return ActionEmbedding(self.num_actions, self.frames_per_latent, hidden_size, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousActions(ActionCondition):
    """Condition on actions that are vectors, such as the speeds of joints; NaN where none is known.

    Attributes:
        action_size: A, how many numbers an action has.
    """

    action_size: int

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 1, "action_size")

    @property
    def none(self) -> Float[np.ndarray, "A"]:
        return np.full((self.action_size,), np.nan, np.float32)

    @property
    def _null(self) -> float:
        return np.nan

    def grouped(self, actions: Float[Array | np.ndarray, "B n A"], *, first: bool) -> Float[Array, "B m s A"]:
        if np.shape(actions)[2:] != (self.action_size,):
            raise ValueError(
                f"Batch.signals[{ACTION!r}] of shape {np.shape(actions)}: config.task.condition.action_size="
                f"{self.action_size}"
            )
        return self._in_groups(jnp.asarray(actions, jnp.float32), first=first)

    def inputs(self) -> Mapping[str, str]:
        return {"action": f"of each frame of a latent frame, {self.action_size} numbers; NaN for none"}

    def label_embedding(self, hidden_size: int, *, rngs: nnx.Rngs) -> "VectorActionEmbedding":
        return VectorActionEmbedding(self.frames_per_latent * self.action_size, hidden_size, rngs=rngs)


class ActionEmbedding(nnx.Module):
    """Embedding of discrete actions: the sum over a latent frame's actions, from a table for each of its frames.

    The row after the last action is the null one. An action beyond that is NaN, which ends a run.
    """

    def __init__(self, num_actions: int, num_frames: int, hidden_size: int, *, rngs: nnx.Rngs):
        axes = (None, "vocab", "embed")
        init = nnx.with_metadata(nnx.initializers.normal(0.02), axes=axes)
        self.table = nnx.Param(init(rngs.params(), (num_frames, num_actions + 1, hidden_size), jnp.float32), axes=axes)

    def __call__(self, actions: Int[Array, "B t s"]) -> Float[Array, "B t D"]:
        tables = constrain(self.table[...], None, None, None)
        rows = [
            table.at[actions[..., frame]].get(mode="fill", fill_value=jnp.nan) for frame, table in enumerate(tables)
        ]
        return sum(rows[1:], rows[0])


class VectorActionEmbedding(VectorEmbedding):
    """Embedding of continuous actions: an MLP of those of a latent frame, and of which of their numbers are known."""

    def __init__(self, num_values: int, hidden_size: int, *, rngs: nnx.Rngs):
        super().__init__(2 * num_values, hidden_size, dtype=jnp.dtype("float32"), rngs=rngs)

    def __call__(self, actions: Float[Array, "B t s A"], /) -> Float[Array, "B t D"]:
        values = actions.reshape(*actions.shape[:2], -1)
        known = ~jnp.isnan(values)
        return super().__call__(jnp.concatenate([jnp.where(known, values, 0.0), known.astype(values.dtype)], axis=-1))
