"""Mazes of corridors with doors and keys, each a function of its seed."""

from collections import deque
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int8

FREE = 0
# Walls are 1 .. NUM_WALLS, a door of colour c is DOOR + c.
NUM_WALLS = 4
DOOR = 16
COLOURS = ("red", "green", "blue")

Cell = tuple[int, int]
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
# Share of dead ends that are opened into a loop.
_OPENED = 0.5


class Maze(NamedTuple):
    """A maze.

    Attributes:
        cells: what each square is: FREE, a kind of wall, or a door; the rim is wall.
        keys: where the key of each colour lies.
        start: where one begins, a square.
    """

    cells: Int8[np.ndarray, "n n"]
    keys: tuple[Cell, ...]
    start: Cell


def make_maze(rng: np.random.Generator, num_cells: int, num_doors: int) -> Maze:
    """A maze of corridors one square wide, with loops; every key can be reached before its door.

    Args:
        num_cells: squares a side, odd and at least 5.
        num_doors: at most one of each colour; fewer where there is no room for so many.
    """
    free = _corridors(rng, num_cells)
    cells = np.where(free, FREE, rng.integers(1, NUM_WALLS + 1, (num_cells, num_cells))).astype(np.int8)
    rooms = [(r, c) for r in range(1, num_cells, 2) for c in range(1, num_cells, 2)]
    start = rooms[int(rng.integers(len(rooms)))]
    between = [(r, c) for r, c in np.argwhere(free).tolist() if (r + c) % 2]
    doors = [between[i] for i in rng.permutation(len(between))[: min(num_doors, len(COLOURS), len(between))]]
    for colour, door in enumerate(doors):
        cells[door] = DOOR + colour
    return Maze(cells, _keys(rng, cells, doors, start), start)


def _corridors(rng: np.random.Generator, num_cells: int) -> Bool[np.ndarray, "n n"]:
    """Which squares are free: a spanning tree of the odd ones by depth-first search, some dead ends opened."""
    free = np.zeros((num_cells, num_cells), bool)
    path: list[Cell] = [(1, 1)]
    free[1, 1] = True
    while path:
        row, column = path[-1]
        ahead = [(dr, dc) for dr, dc in _STEPS if _inside(row + 2 * dr, column + 2 * dc, num_cells)]
        ahead = [(dr, dc) for dr, dc in ahead if not free[row + 2 * dr, column + 2 * dc]]
        if not ahead:
            path.pop()
            continue
        dr, dc = ahead[int(rng.integers(len(ahead)))]
        free[row + dr, column + dc] = free[row + 2 * dr, column + 2 * dc] = True
        path.append((row + 2 * dr, column + 2 * dc))
    for row in range(1, num_cells, 2):
        for column in range(1, num_cells, 2):
            walls = [(dr, dc) for dr, dc in _STEPS if not free[row + dr, column + dc]]
            walls = [(dr, dc) for dr, dc in walls if _inside(row + 2 * dr, column + 2 * dc, num_cells)]
            dead_end = sum(free[row + dr, column + dc] for dr, dc in _STEPS) == 1
            if dead_end and walls and rng.random() < _OPENED:
                dr, dc = walls[int(rng.integers(len(walls)))]
                free[row + dr, column + dc] = True
    return free


def _inside(row: int, column: int, num_cells: int) -> bool:
    return 0 < row < num_cells - 1 and 0 < column < num_cells - 1


def _keys(rng: np.random.Generator, cells: Int8[np.ndarray, "n n"], doors: list[Cell], start: Cell) -> tuple[Cell, ...]:
    """Where the key of each door lies: in what can be reached when the doors before it are open."""
    closed, keys = dict(enumerate(doors)), {}
    while closed:
        reached = reachable(cells, start, open_colours=frozenset(keys))
        # Of doors that can be walked up to, one at least is closed.
        colour = next(c for c, (r, k) in closed.items() if any((r + dr, k + dk) in reached for dr, dk in _STEPS))
        places = sorted(reached - {start} - set(doors) - set(keys.values())) or [start]
        keys[colour] = places[int(rng.integers(len(places)))]
        del closed[colour]
    return tuple(keys[colour] for colour in sorted(keys))


def reachable(cells: Int8[np.ndarray, "n n"], start: Cell, open_colours: frozenset[int] = frozenset()) -> set[Cell]:
    """Squares that can be walked to, through doors of these colours alone."""
    passed, waiting = {start}, deque([start])
    while waiting:
        row, column = waiting.popleft()
        for dr, dc in _STEPS:
            place = (row + dr, column + dc)
            kind = int(cells[place])
            if place not in passed and (kind == FREE or kind - DOOR in open_colours):
                passed.add(place)
                waiting.append(place)
    return passed
