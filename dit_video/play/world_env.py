"""A trained world as an environment of Gymnasium (extra `worlds`), so that agents can act in it."""

from typing import Any

import gymnasium
import numpy as np

from dit_video.play.stage import Stage
from dit_video.play.stream import Starts, Stream
from dit_video.run.world import World


class WorldEnv(gymnasium.Env):
    """A trained world as a `gymnasium.Env`: observations are frames, rewards are none, episodes are cut off.

        env = WorldEnv.of(open_world(Path("runs/corridor")), max_steps=500)

    `reset(seed)` draws the clip that it begins with; `options={"clip": n}` names it. Two episodes of one seed, clip and
    the same actions are bit-equal on one machine.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, stream: Stream, starts: Starts, *, max_steps: int = 500):
        self.render_mode = "rgb_array"
        self._stage, self._starts, self._max_steps = Stage(stream, starts.actions), starts, max_steps
        self.metadata = {**self.metadata, "render_fps": stream.fps}
        number = len(starts.actions.names)
        self.action_space = (
            gymnasium.spaces.Box(-np.inf, np.inf, (number,), np.float32)
            if starts.actions.continuous
            else gymnasium.spaces.Discrete(number)
        )
        self.observation_space = gymnasium.spaces.Box(0, 255, (*stream.size, 3), np.uint8)
        self._frame, self._count = np.zeros((*stream.size, 3), np.uint8), 0

    @classmethod
    def of(cls, world: World, *, max_steps: int = 500) -> "WorldEnv":
        """A world that `open_world` opened."""
        starts = Starts(world.opened.experiment.data, frames_per_step=world.frames_per_step)
        return cls(world, starts, max_steps=max_steps)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(len(self._starts)))
        start = self._starts.at((options or {}).get("clip", drawn))
        self._frame = self._stage.reset(start, seed=int(self.np_random.integers(1 << 31))).dream
        self._count = 0
        return self._frame, {"clip": start.name}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._frame = self._stage.step(action)[-1].dream
        self._count += 1
        return self._frame, 0.0, False, self._count >= self._max_steps, {}

    def render(self) -> np.ndarray:
        return self._frame
