"""Environments of Gymnasium beside the corridor: one protocol, names of actions, errors that say what to do."""

from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dit_video.worlds.environment import open_environment


class Shade(gymnasium.Env):
    """Its picture is as bright as the sum of the actions; an episode ends after five steps."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 12}
    action_space = spaces.Discrete(3)
    observation_space = spaces.Box(0, 255, (1,))

    def __init__(self, render_mode: str | None = None):
        self.render_mode, self.value, self.count = render_mode, 0, 0

    def get_action_meanings(self):
        return ["NOOP", "UP", "DOWN"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.value, self.count = int(self.np_random.integers(100)), 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.value += (0, 10, -10)[action]
        self.count += 1
        return np.zeros(1, np.float32), 0.0, self.count == 5, False, {}

    def render(self):
        return np.full((32, 48, 3), self.value % 256, np.uint8)


class Steered(Shade):
    action_space = spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, 2.0]), dtype=np.float64)

    def step(self, action):
        assert action.dtype == np.float64
        return super().step(int(action[0] > 0))


class Untold(Shade):
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))


class Undrawn(Shade):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled("a_library is not installed")


@pytest.fixture(scope="module", autouse=True)
def registered():
    kinds = {"Shade-v0": Shade, "Steered-v0": Steered, "Untold-v0": Untold, "Undrawn-v0": Undrawn}
    for name, kind in kinds.items():
        gymnasium.register(f"tests/{name}", kind, disable_env_checker=True)
    yield
    for name in kinds:
        del gymnasium.registry[f"tests/{name}"]


@pytest.mark.parametrize("name", ["corridor", "tests/Shade-v0"])
def test_one_seed_and_the_same_actions_give_one_episode(name):
    shown = []
    for _ in range(2):
        world = open_environment(name)
        shown.append([world.reset(3).frame, *(world.step(action).frame for action in (1, 1, 0, 2))])
        world.close()
    np.testing.assert_array_equal(*shown)


def test_actions_have_the_names_of_the_environment():
    world = open_environment("tests/Shade-v0")
    about = world.description
    assert (about.actions.names, about.noop, about.fps) == (("noop", "up", "down"), 0, 12.0)
    assert gymnasium.__version__ in about.version
    before = world.reset(0).frame
    assert (world.step(1).frame - before == 10).all()
    assert [world.step(0).ended for _ in range(4)] == [False, False, False, True]


def test_continuous_actions_have_limits():
    world = open_environment("tests/Steered-v0", fps=5.0)
    about = world.description
    assert about.actions.continuous
    assert (about.limits, about.fps, about.noop) == (((-1.0, 1.0), (-1.0, 2.0)), 5, None)
    world.reset(0)
    world.step(np.array([0.5, 0.0], np.float32))


@pytest.mark.parametrize(
    ("name", "remedy"), [("nowhere/Nothing-v3", "install the package"), ("tests/Untold-v0", "wrap it")]
)
def test_what_cannot_be_opened_is_named(name, remedy):
    with pytest.raises(ValueError, match=remedy) as error:
        open_environment(name)
    assert name in str(error.value)


def test_what_an_environment_draws_with_is_named_where_it_is_missing():
    world = open_environment("tests/Undrawn-v0")
    with pytest.raises(ValueError, match="Undrawn-v0' cannot draw its pictures here: a_library is not installed"):
        world.reset(0)
