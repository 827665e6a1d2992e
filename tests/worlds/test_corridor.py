"""The corridor: a function of seed and actions, whose pictures are those of its camera's pose."""

import math

import numpy as np
import pytest

from dit_video.worlds.corridor import (
    BACK,
    FORWARD,
    NOOP,
    STEP,
    TURN,
    TURN_LEFT,
    TURN_RIGHT,
    Corridor,
)  # fmt: skip
from dit_video.worlds.maze import DOOR, FREE, make_maze, reachable


@pytest.fixture(scope="module")
def world() -> Corridor:
    return Corridor()


def episode(world: Corridor, seed: int, actions) -> tuple[np.ndarray, np.ndarray]:
    shown = [world.reset(seed), *(world.step(int(action)) for action in actions)]
    return np.stack([o.frame for o in shown]), np.stack([o.pose for o in shown])


def test_an_episode_is_a_function_of_seed_and_actions(world):
    actions = np.random.default_rng(0).integers(0, 5, 60)
    frames, poses = episode(world, 7, actions)
    again, poses_again = episode(Corridor(), 7, actions)
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(poses, poses_again)
    assert frames.shape == (61, 64, 64, 3)
    assert not np.array_equal(episode(world, 8, [])[0], frames[:1])


def test_a_frame_is_the_picture_from_its_pose(world):
    frames, poses = episode(world, 3, [TURN_LEFT] * 30 + [NOOP])
    np.testing.assert_array_equal(world.render(poses), frames)
    np.testing.assert_array_equal(frames[30], frames[31])


def test_actions_move_the_camera_as_they_are_called(world):
    _, poses = episode(world, 1, [TURN_RIGHT, TURN_RIGHT, TURN_LEFT, NOOP])
    turned = np.round((np.diff(poses[:, 2]) + math.pi) % math.tau - math.pi, 6)
    np.testing.assert_allclose(turned, [TURN, TURN, -TURN, 0], atol=1e-6)
    ahead = next(seed for seed in range(50) if moved(world, seed, FORWARD) > STEP - 1e-6)
    world.reset(ahead)
    there = world.step(FORWARD).pose
    assert np.hypot(*(world.step(BACK).pose - there)[:2]) == pytest.approx(STEP)


def moved(world: Corridor, seed: int, action: int) -> float:
    _, poses = episode(world, seed, [action])
    return float(np.hypot(*(poses[1] - poses[0])[:2]))


def test_what_is_seen_goes_left_when_one_turns_right(world):
    """A full turn to the right has each picture's right half come into the left one, and not the other way about."""
    frames, _ = episode(world, 5, [TURN_RIGHT] * 24)
    right = left = 0.0
    for before, after in zip(frames[:-1].astype(float), frames[1:].astype(float)):
        # The middle of the picture moves by about tan(15 degrees) / 0.8 * 32 pixels.
        right += np.abs(before[:, 21:53] - after[:, 10:42]).mean()
        left += np.abs(before[:, 10:42] - after[:, 21:53]).mean()
    assert right < left / 4
    np.testing.assert_array_equal(frames[0], frames[24])


def test_nobody_walks_into_walls_or_closed_doors(world):
    rng = np.random.default_rng(1)
    for seed in range(5):
        _, poses = episode(world, seed, rng.choice([FORWARD, FORWARD, TURN_LEFT, TURN_RIGHT], 100))
        kinds = world._cells[poses[:, 1].astype(int), poses[:, 0].astype(int)]
        assert (kinds == FREE).all()


@pytest.mark.parametrize("seed", range(20))
def test_every_key_can_be_reached_before_its_door(seed):
    maze = make_maze(np.random.default_rng(seed), 9, 3)
    rim = np.concatenate([maze.cells[0], maze.cells[-1], maze.cells[:, 0], maze.cells[:, -1]])
    assert (rim != FREE).all()
    assert (rim < DOOR).all()
    held: frozenset[int] = frozenset()
    while len(held) < 3:
        found = {c for c, key in enumerate(maze.keys) if key in reachable(maze.cells, maze.start, held)}
        assert found > held, "a key lies behind its own door"
        held = frozenset(found)
    everywhere = int((maze.cells == FREE).sum()) + 3
    assert len(reachable(maze.cells, maze.start, held)) == everywhere


def test_a_door_opens_to_who_has_its_key(world):
    world.reset(0)
    row, column = (int(n) for n in np.argwhere(world._cells >= DOOR)[0])
    colour = int(world._cells[row, column]) - DOOR
    assert not world._is_free(column + 0.5, row + 0.5)
    key_row, key_column = world.maze.keys[colour]
    before = world.render(np.array([[key_column + 0.1, key_row + 0.5, 0.0]]))
    world.pose = np.array([key_column + 0.5, key_row + 0.5, 0.0])
    world._walk(0.0, 0.0)
    assert (world.render(np.array([[key_column + 0.1, key_row + 0.5, 0.0]])) != before).any(), "the key is gone"
    assert world._is_free(column + 0.5, row + 0.5)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"size": 7}, "size=7"), ({"size": 65}, "size=65"), ({"num_cells": 8}, "num_cells=8"), ({"fps": 0.0}, "fps=0")],
)
def test_what_cannot_be_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        Corridor(**options)
    with pytest.raises(ValueError, match="action=5"):
        Corridor().step(5)
