"""The corridor: a first-person maze with doors and keys, small enough to learn in minutes, which needs no extra.

Every maze is a function of its seed, and every frame of the maze and the actions: an episode is decided by its seed and
its actions. The camera's pose is known in each frame, so that what a model has learnt of geometry can be judged.
"""

import math

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.config.bounds import above, at_least
from dit_video.video.actions import ActionSpace
from dit_video.worlds.environment import CORRIDOR, Description, Observation
from dit_video.worlds.maze import DOOR, FREE, Maze, make_maze
from dit_video.worlds.ray_casting import Key, render

# Pictures of a seed are those of this version.
VERSION = "1"
ACTIONS = ActionSpace(names=("noop", "forward", "back", "turn_left", "turn_right"))
NOOP, FORWARD, BACK, TURN_LEFT, TURN_RIGHT = range(5)
# Of a square, and of a turn.
STEP, TURN = 0.2, math.tau / 24
_RADIUS = 0.25


class Corridor:
    """The corridor, an `Environment`.

    Attributes:
        maze: of this episode.
        pose: x (columns), y (rows), angle in radians from x towards y; turning right adds to it.
    """

    def __init__(self, *, size: int = 64, num_cells: int = 9, num_doors: int = 2, fps: float = 10.0):
        """Args:
        size: height and width of a frame, even.
        num_cells: squares a side, odd.
        num_doors: at most 3, one of each colour.
        fps: at which it is meant to be shown.
        """
        self.size, self.num_cells, self.num_doors, self.fps = size, num_cells, num_doors, fps
        at_least(self, 8, "size")
        at_least(self, 5, "num_cells")
        at_least(self, 0, "num_doors")
        above(self, 0, "fps")
        if size % 2 or not num_cells % 2:
            raise ValueError(f"Corridor: size={size} must be even and num_cells={num_cells} odd")
        self._begin(0)

    @property
    def description(self) -> Description:
        options = {"size": self.size, "num_cells": self.num_cells, "num_doors": self.num_doors}
        pose = ("x", "y", "angle")
        return Description(
            name=CORRIDOR, version=VERSION, actions=ACTIONS, noop=NOOP, fps=self.fps, pose=pose, options=options
        )

    def reset(self, seed: int) -> Observation:
        self._begin(seed)
        return self._observed()

    def step(self, action: int | np.integer) -> Observation:
        x, y, angle = self.pose.tolist()
        match action:
            case 3 | 4:
                # By whole turns, so that a full circle ends where it began.
                turns = round(angle / TURN) + (1 if action == TURN_RIGHT else -1)
                self.pose = np.array([x, y, turns % round(math.tau / TURN) * TURN])
            case 1 | 2:
                way = STEP if action == FORWARD else -STEP
                self._walk(way * math.cos(angle), way * math.sin(angle))
            case 0:
                pass
            case _:
                raise ValueError(f"action={action}: must be a number from 0 to {len(ACTIONS.names) - 1}")
        return self._observed()

    def close(self) -> None:
        """There is nothing to give back."""

    def render(self, poses: Float[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N size size 3"]:
        """Pictures of this maze, as its doors and keys are now, from any poses."""
        keys = [Key(c, k + 0.5, r + 0.5) for c, (r, k) in enumerate(self.maze.keys) if c not in self._held]
        return render(self._cells, keys, poses.astype(np.float32), self.size)

    def _begin(self, seed: int) -> None:
        rng = np.random.default_rng((20, seed))
        self.maze: Maze = make_maze(rng, self.num_cells, self.num_doors)
        self._cells, self._held = self.maze.cells.copy(), frozenset[int]()
        row, column = self.maze.start
        angle = TURN * int(rng.integers(round(math.tau / TURN)))
        self.pose: Float[np.ndarray, "3"] = np.array([column + 0.5, row + 0.5, angle])

    def _observed(self) -> Observation:
        return Observation(self.render(self.pose[None])[0], self.pose.copy())

    def _walk(self, dx: float, dy: float) -> None:
        """Moves, along walls where one is in the way; takes keys, and opens the doors that they are of."""
        x, y, angle = self.pose.tolist()
        if self._is_free(x + dx, y):
            x += dx
        if self._is_free(x, y + dy):
            y += dy
        self.pose = np.array([x, y, angle])
        here = (int(y), int(x))
        self._held |= {colour for colour, place in enumerate(self.maze.keys) if place == here}

    def _is_free(self, x: float, y: float) -> bool:
        corners = [(x + a * _RADIUS, y + b * _RADIUS) for a in (-1, 1) for b in (-1, 1)]
        for cell in {(int(below), int(right)) for right, below in corners}:
            kind = int(self._cells[cell])
            if kind >= DOOR and kind - DOOR in self._held:
                self._cells[cell] = FREE
            if self._cells[cell] != FREE:
                return False
        return True
