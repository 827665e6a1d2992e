"""A world that answers to actions: a trained run that goes forward frame by frame, as its user acts.

    world = open_world(Path("runs/corridor"))
    world.reset(frames, actions, seed=0)
    frame = world.step(2)

One program makes a frame, compiled once: number of steps and guidance are its arguments, its state is donated to the
next call, and on the host there is only an action to send and a frame to fetch.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from rich.console import Console

from dit_video.dit.action_condition import ContinuousActions, DiscreteActions
from dit_video.experiment import Experiment
from dit_video.run.open_run import OpenRun, clip_shape, open_run, sampled_clip
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.roll_out import Settings, Shown

Frames = UInt8[np.ndarray, "T H W 3"]
Action = int | np.integer | Int[np.ndarray, "..."] | Float[np.ndarray, "..."] | None


def open_world(
    workdir: Path,
    *,
    step: int | None = None,
    ema: bool = True,
    guided: bool = False,
    like: Experiment | None = None,
    console: Console | None = None,
) -> "World":
    """Opens a run folder as a world.

    Args:
        guided: the world also carries itself along without actions, at twice the work, so that `guidance` can be any.
        step, ema, like, console: as of `open_run`.

    Raises:
        ValueError: the run is no world.
    """
    return World(open_run(workdir, step=step, ema=ema, like=like, needs_data=False, console=console), guided=guided)


class World:
    """One stream of frames of a trained world, for one caller at a time.

    Attributes:
        opened: its run.
        size: (H, W) of a frame.
        frames_per_step: frames that a step makes, those of a latent frame.
        num_actions: how many discrete actions there are; None where they are continuous.
        action_size: of how many numbers a continuous action is; None where they are discrete.
    """

    def __init__(self, opened: OpenRun, *, guided: bool = False):
        self.opened, task = opened, opened.experiment.task
        shape = clip_shape(opened.experiment)
        self._roll_out, self.size = task.roll_out(shape, guided=guided), shape[1:]
        self._settings = self._roll_out.settings(guidance=None if guided else 1.0)
        condition = self._condition = self._roll_out.condition
        self.frames_per_step = condition.frames_per_latent
        self.num_actions = condition.num_actions if isinstance(condition, DiscreteActions) else None
        self.action_size = condition.action_size if isinstance(condition, ContinuousActions) else None
        self._shown: Shown | None = None
        bind, roll_out = opened.definition.bind, self._roll_out
        # Blocks are cut out of their stack once and not for every frame.
        blocks = self._run(jax.jit(lambda params: bind(params).unstacked()), opened.params)
        weights = opened.params, blocks, opened.frozen.codec
        self._begin = jax.jit(lambda params, blocks, codec, *args: roll_out.begin_shown(bind(params), codec, *args))
        self._absorb = jax.jit(
            lambda params, blocks, codec, *args: roll_out.absorb_shown(bind(params), blocks, codec, *args),
            donate_argnums=(3, 4),
        )
        self._step = jax.jit(
            lambda params, blocks, codec, *args: roll_out.step_shown(bind(params), blocks, codec, *args),
            donate_argnums=3,
        )
        self._begin, self._absorb, self._step = (
            functools.partial(self._run, program, *weights) for program in (self._begin, self._absorb, self._step)
        )

    @property
    def fps(self) -> float:
        """Frames per second of the clips that it has learnt from."""
        return sampled_clip(self.opened.experiment)[1][0]

    @property
    def num_steps(self) -> int:
        """Steps of denoising a frame; may be set between two frames."""
        return int(self._settings.num_steps)

    @num_steps.setter
    def num_steps(self, num_steps: int) -> None:
        self._settings = self._roll_out.settings(num_steps, self.guidance)

    @property
    def guidance(self) -> float:
        """Scale of guidance on actions; may be set between two frames where the world is opened with `guided`."""
        return float(self._settings.guidance)

    @guidance.setter
    def guidance(self, guidance: float) -> None:
        self._settings = self._roll_out.settings(self.num_steps, guidance)

    @property
    def settings(self) -> Settings:
        """What the next frame is made with."""
        return self._settings

    def warm_up(self) -> None:
        """Compiles all programs; a stream that has begun ends."""
        self.reset(np.zeros((1 + self.frames_per_step, *self.size, 3), np.uint8))
        self.step(None)
        self._shown = None

    def reset(
        self,
        frames: Frames,
        actions: Int[np.ndarray, "T"] | Float[np.ndarray, "T A"] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Begins a stream with frames that are known; nothing is compiled for another number of them.

        Args:
            frames: 1 + s k.
            actions: action f led from frame f - 1 to frame f, the first means nothing; None: none is known.
            seed: of the noise of all frames that follow.

        Raises:
            ValueError: frames of another size, or that do not fill latent frames; actions that are none of this world.
        """
        if frames.shape[1:] != (*self.size, 3):
            raise ValueError(f"frames of {frames.shape[1:]}: this world has frames of {(*self.size, 3)}")
        group = self.frames_per_step
        if (len(frames) - 1) % group:
            raise ValueError(f"{len(frames)} frames: must be 1 + {group} k")
        known = self._of_frames(actions, len(frames))
        keys = clip_keys(seed, [0], "world")
        shown, encoder = self._begin(frames[None, :1], known[None, :1], keys)
        for first in range(1, len(frames), group):
            part = slice(first, first + group)
            shown, encoder = self._absorb(shown, encoder, frames[None, part], known[None, part])
        self._shown = shown

    def step(self, action: Action) -> UInt8[np.ndarray, "s H W 3"]:
        """The next frames: as many as a latent frame has, mostly one.

        Args:
            action: one, for all of them, or one for each; None: not known.

        Raises:
            ValueError: none of this world's actions, or no stream has begun.
        """
        if self._shown is None:
            raise ValueError("World.step: no stream has begun; call reset with a first frame")
        actions = self._of_frames(action, self.frames_per_step)
        self._shown, frames = self._step(self._shown, actions[None], self._settings)
        return np.asarray(frames)[0]

    def _of_frames(self, actions: Any, num_frames: int) -> np.ndarray:
        """An action for each of some frames, from one for all, one for each or none."""
        none = self._condition.none
        each = none if actions is None else np.asarray(actions, none.dtype)
        if each.shape not in (none.shape, (num_frames, *none.shape)):
            raise ValueError(f"actions of shape {each.shape}: must be one of {none.shape}, or {num_frames} of them")
        if self.num_actions is not None and not ((each >= -1) & (each < self.num_actions)).all():
            raise ValueError(f"action {each.max()}: must be a number under {self.num_actions}, or -1 for none")
        return np.broadcast_to(each, (num_frames, *none.shape))

    def _run(self, program: Any, *args: Any) -> Any:
        with jax.set_mesh(self.opened.mesh):
            return program(*args)
