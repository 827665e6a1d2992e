"""Poses of the corridor are found by its own renders: without error for true frames, and by how much for others."""

import math

import numpy as np
import pytest

from dit_video.worlds.corridor import FORWARD, TURN, TURN_LEFT, TURN_RIGHT, Corridor
from tools.bench_world import pose_error


def test_true_frames_have_no_error():
    rng = np.random.default_rng(0)
    world = Corridor()
    world.reset(3)
    for action in rng.choice([FORWARD, TURN_LEFT, TURN_RIGHT], 5):
        frame = world.step(action).frame
    np.testing.assert_array_equal(pose_error(frame, world), 0)


def test_another_angle_and_place_are_told():
    world = Corridor()
    world.reset(1)
    for offset, expected in (((0, 0, TURN), (0, 15)), ((0.2, -0.4, -TURN / 3), (math.hypot(0.2, 0.4), 5))):
        frame = world.render((world.pose + np.array(offset))[None])[0]
        assert pose_error(frame, world) == pytest.approx(expected, abs=1e-6)
