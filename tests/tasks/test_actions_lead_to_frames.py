"""The off-by-one law: a world in which action f leads from frame f - 1 to frame f is learnt, and no other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit_video.data.batch import Batch
from dit_video.diffusion.objective import diffusion_forcing, rectified_flow
from dit_video.diffusion.prediction import X0
from dit_video.diffusion.sampler import Euler
from dit_video.dit.action_condition import DiscreteActions
from dit_video.dit.dit import DiTConfig
from dit_video.dit.network import CausalFrames
from dit_video.nn.module import define, params_of
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.past_frames import PastFrames
from dit_video.vae.trained_codec import TrainedCodec
from dit_video.vae.video_vae import VideoVAEConfig

FRAMES = 4
VAE = VideoVAEConfig(channels=8, multipliers=(1,), strides=((1, 8, 8),), num_blocks=1, latent_channels=2)
LIGHT = Denoise(
    network=DiTConfig(hidden_size=32, depth=1, num_heads=2, patch_size=(1, 1, 1), causal=CausalFrames(window=FRAMES)),
    codec=TrainedCodec(vae=VAE, run="runs/none"),
    condition=DiscreteActions(num_actions=3, drop_rate=0.0),
    objective=diffusion_forcing(dataclasses.replace(rectified_flow(), prediction=X0())),
    sampler=Euler(num_steps=4),
    past=PastFrames(noise=0.01),
)


def lights(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of a light [B t 1 1 2], and actions: the light has the colour of the action that led to the frame."""
    actions = np.random.default_rng(seed).integers(0, 3, (rows, FRAMES), np.int32)
    angle = 2 * np.pi / 3 * actions
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, :, None, None].astype(np.float32), actions


def learnt_error(task: Denoise, shift: int, num_steps: int = 60) -> float:
    """Squared error of rolled-out frames over their variance, of a network that learnt with actions shifted so."""
    definition = define(task.init)
    frozen = jax.jit(task.blank)(jax.random.key(0))
    params = jax.jit(lambda key: params_of(task.init(key)))(jax.random.key(1))
    latents, actions = lights(1024, 0)
    moments = np.concatenate([latents, np.full_like(latents, -30.0)], axis=-1)
    actions = np.roll(actions, shift, axis=1)
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, num_steps))

    def update(state, index):
        params, opt = state
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(2), index), (16,), 0, len(moments))
        batch = Batch(moments=jnp.asarray(moments)[rows], signals={"action": jnp.asarray(actions)[rows]})

        def loss(params):
            key = jax.random.fold_in(jax.random.key(3), index)
            return task.loss(definition.bind(params), frozen, batch, key, index)[0]

        step, opt = optimizer.update(jax.grad(loss)(params), opt)
        return (optax.apply_updates(params, step), opt), None

    run = jax.jit(lambda params: jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0])
    params = run(params)
    x, actions = lights(64, 1)
    batch = Batch(signals={"action": np.roll(actions, shift, axis=1)})
    roll_out = functools.partial(task.roll_out((FRAMES, 8, 8)).clips, definition.bind(params), batch)
    made = np.asarray(jax.jit(roll_out)(jnp.asarray(x[:, :1]), clip_keys(0, range(64))))
    return float(np.square(made - x)[:, 1:].mean() / x.var())


@pytest.mark.slow
def test_a_world_is_learnt_where_each_action_leads_to_its_frame_and_not_where_it_led_to_the_one_before():
    assert learnt_error(LIGHT, 0) < 0.01
    # The action that frame f has is the one that led to frame f - 1.
    assert learnt_error(LIGHT, 1) > 0.3


@pytest.mark.slow
def test_a_world_is_learnt_beside_a_clean_copy_too():
    assert learnt_error(dataclasses.replace(LIGHT, past=PastFrames(noise=0.01, copy_noise=0.05)), 0) < 0.01
