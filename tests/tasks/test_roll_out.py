"""Roll-outs of a world: what is made with a cache is what is made without, in one program, the same every time."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import SMALL_DENOISE, small_mesh, untrained

from dit_video.data.batch import Batch
from dit_video.diffusion.multistep import DPMSolver
from dit_video.diffusion.sampler import Ancestral, Euler, Heun
from dit_video.dit.action_condition import DiscreteActions
from dit_video.dit.dit import DiT, DiTConfig
from dit_video.dit.network import CausalFrames
from dit_video.nn.cache import KeyValueCache
from dit_video.nn.module import define, params_of
from dit_video.run.open_run import OpenRun
from dit_video.run.world import World
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.past_frames import PastFrames
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import ROLL_OUT

WORLD = dataclasses.replace(
    SMALL_DENOISE,
    network=DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 1, 1), causal=CausalFrames(window=2)),
    condition=DiscreteActions(num_actions=3, frames_per_latent=4),
    sampler=Euler(num_steps=3),
    past=PastFrames(noise=0.1),
)
SHAPE = (17, 16, 16)
DEFINITION = define(WORLD.init)


@pytest.fixture(scope="module")
def params():
    """No parameter is zero: a fresh DiT is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    fresh = jax.jit(lambda key: params_of(WORLD.init(key)))(jax.random.key(0))
    return {n: p + 0.2 * rng.normal(size=p.shape).astype(np.float32) for n, p in sorted(fresh.items())}


@pytest.fixture(scope="module")
def frozen():
    return jax.jit(WORLD.blank)(jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    """The first two latent frames of two clips, and actions of five."""
    rng = np.random.default_rng(0)
    return Batch(
        video=rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8),
        signals={"action": rng.integers(0, 3, (2, SHAPE[0]), np.int32)},
    )


class Uncached(DiT):
    """A network that remembers what it has seen and goes through all of it again."""

    def unstacked(self):
        return []

    def empty_cache(self, rows, shape):
        cond = jnp.zeros((rows, 8, WORLD.condition.frames_per_latent), jnp.int32)
        seen = jnp.zeros((rows, 8, *shape[1:], 4)), jnp.zeros((rows, 8)), cond
        return KeyValueCache(keys=seen, values=(), tokens=jnp.zeros(8, jnp.int32))

    def cached(self, blocks, x_t, t, cond, first, cache):
        put = lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, first, axis=1)  # noqa: E731
        cache = dataclasses.replace(cache, keys=jax.tree.map(put, cache.keys, (x_t, t, cond)))
        out = self.output(*cache.keys)
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, x_t.shape[1], axis=1), out), cache


UNCACHED = define(lambda key: Uncached(WORLD.network, 4, WORLD.condition, rngs=nnx.Rngs(key)))


def clips(task, params, batch, latents, *, guidance=None, definition=DEFINITION):
    """Latents of the clips of a batch, rolled out."""
    guided = guidance is not None
    roll_out = task.roll_out(SHAPE, guided=guided)
    roll_out = dataclasses.replace(roll_out, guidance=dataclasses.replace(roll_out.guidance, scale=guidance or 1.0))
    make = lambda params, *rest: roll_out.clips(definition.bind(params), *rest)  # noqa: E731
    return np.asarray(jax.jit(make)(params, batch, latents, clip_keys(3, range(len(latents)))))


@pytest.fixture(scope="module")
def latents():
    return jax.random.normal(jax.random.key(2), (2, 2, 2, 2, 4))


@pytest.mark.parametrize(
    "sampler",
    [
        Euler(num_steps=3),
        pytest.param(Heun(num_steps=2), marks=pytest.mark.slow),
        pytest.param(Ancestral(num_steps=1), marks=pytest.mark.slow),
    ],
    ids=["euler", "heun", "ancestral, one step"],
)
def test_with_a_cache_frames_are_what_they_are_without(params, batch, latents, sampler):
    """The window is shorter than the clip: the ring forgets."""
    task = dataclasses.replace(WORLD, sampler=sampler)
    actual = clips(task, params, batch, latents)
    np.testing.assert_array_equal(actual[:, :2], latents)
    expected = clips(task, params, batch, latents, definition=UNCACHED)
    assert np.abs(expected[:, 2:]).max() > 0.5
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_guidance_at_scale_1_is_none_and_at_scale_0_follows_no_action(params, batch, latents):
    plain = clips(WORLD, params, batch, latents)
    np.testing.assert_allclose(clips(WORLD, params, batch, latents, guidance=1.0), plain, rtol=1e-4, atol=1e-4)
    other = batch._replace(signals={"action": (batch.signals["action"] + 1) % 3})
    assert np.abs(clips(WORLD, params, other, latents) - plain)[:, 2:].max() > 1e-2
    none = [clips(WORLD, params, b, latents, guidance=1e-9) for b in (batch, other)]
    np.testing.assert_allclose(*none, atol=1e-5)


def opened(params, frozen) -> OpenRun:
    return OpenRun(Path("nowhere"), untrained(WORLD), DEFINITION, params, frozen, small_mesh(), 0, True)


def test_a_world_makes_the_frames_of_its_task_in_one_program_and_the_same_again(params, frozen, batch):
    """Played action by action and decoded as a stream; then with other steps, which compiles nothing."""
    world = World(opened(params, frozen))
    actions, frames = batch.signals["action"][0], batch.video[0]
    assert (world.frames_per_step, world.num_actions, world.action_size) == (4, 3, None)

    def play():
        world.reset(frames, actions[:5], seed=3)
        return np.concatenate([world.step(actions[first : first + 4]) for first in (5, 9, 13)])

    played = play()
    assert played.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(play(), played)

    subject = Subject(WORLD, DEFINITION, frozen, small_mesh(), {}).with_weights(params, step=0, ema=True)
    keys = clip_keys(3, [0, 0], "world")
    made = subject(ROLL_OUT, batch, keys, clip_shape_of_world())
    # Rounded to integers once here and once there.
    assert np.abs(made[0, 5:].astype(int) - played).max() <= 1

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    world.num_steps = 2
    world.reset(frames[:1], None, seed=3)
    assert np.abs(world.step(1).astype(int) - world.step(None)).max() > 0
    assert [name for name in compiled if "backend_compile" in name] == []
    with pytest.raises(ValueError, match=r"guidance=2\.0: needs guided=True"):
        world.guidance = 2.0
    with pytest.raises(ValueError, match="action 3: must be a number under 3"):
        world.step(3)
    with pytest.raises(ValueError, match=r"3 frames: must be 1 \+ 4 k"):
        world.reset(frames[:3])


def clip_shape_of_world():
    """Of the clips of `untrained`, by which times are shifted."""
    return (5, 16, 16)


def test_what_makes_no_world_is_refused_by_name():
    with pytest.raises(ValueError, match="sampler=DPMSolver: a frame of a roll-out begins without steps before"):
        dataclasses.replace(WORLD, sampler=DPMSolver(num_steps=4)).roll_out(SHAPE)
    with pytest.raises(ValueError, match=r"Denoise.past=.*set network.causal=CausalFrames\(window=...\)"):
        dataclasses.replace(WORLD, network=dataclasses.replace(WORLD.network, causal=CausalFrames()))
    with pytest.raises(ValueError, match="condition=None says nothing of frames"):
        dataclasses.replace(WORLD, condition=None)
    with pytest.raises(ValueError, match="goes forward by no actions"):
        SMALL_DENOISE.roll_out(SHAPE)
    with pytest.raises(ValueError, match="frames_per_latent=2: the codec puts 4 frames"):
        dataclasses.replace(WORLD, condition=DiscreteActions(num_actions=3, frames_per_latent=2))
