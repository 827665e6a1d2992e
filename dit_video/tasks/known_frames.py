"""The first frame of a clip where it is known: what a network sees of it, and what is left to be judged."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Latents, Time
from dit_video.data.batch import Batch
from dit_video.diffusion.objective import Corrupted
from dit_video.encoders.clip_image import CLIPVisionModel
from dit_video.vae.codec import LatentCodec, to_pixels

Frames = TypeVar("Frames")


def first_frame(codec: LatentCodec, batch: Batch) -> Float[Array, "B 1 h w c"]:
    """Whitened latents of the first frame of each clip, which the VAE encodes alone; the posterior's mean."""
    cached = None if batch.moments is None else jnp.asarray(batch.moments)[:, :1]
    moments = codec.moments(batch.require_video()[:, :1]) if cached is None else cached
    return jax.lax.stop_gradient(codec.whiten(moments))


def followed_by_zeros(first: Float[Array, "B 1 h w c"], num_frames: int) -> Latents:
    """Clips of so many latent frames that are zero after their first."""
    return jnp.pad(first, ((0, 0), (0, num_frames - 1), (0, 0), (0, 0), (0, 0)))


def grey_after_first(codec: LatentCodec, batch: Batch, num_frames: int) -> Latents:
    """Whitened latents of clips of so many latent frames that are grey after their first frame.

    Raises:
        ValueError: the batch has no video.
    """
    frame = to_pixels(batch.require_video()[:, :1])
    grey = (num_frames - 1) * codec.vae.config.compression[0]
    # Grey is 0 in pixels; no integer of a video is.
    moments = codec.vae.encode(jnp.pad(frame, ((0, 0), (0, grey), (0, 0), (0, 0), (0, 0))))
    return jax.lax.stop_gradient(codec.whiten(moments))


def image_tokens(encoder: CLIPVisionModel, batch: Batch) -> Float[Array, "B I E"]:
    """What an image encoder makes of the first frame of each clip.

    Raises:
        ValueError: the batch has no video.
    """
    if batch.video is None:
        raise ValueError(
            "config.task.image: its tokens are made of the pixels of the first frame, which a latent cache does not "
            "have; train on video, config.data.cache=None"
        )
    return jax.lax.stop_gradient(encoder(batch.video[:, 0]))


def held(x_t: Latents, t: Time, first: Float[Array, "B 1 h w c"] | None) -> tuple[Latents, Time]:
    """x_t and t as a network sees them for which the first frame is at noise level 0; as they are without one.

    Raises:
        ValueError: there is no other frame.
    """
    if first is None:
        return x_t, t
    if x_t.shape[1] == 1:
        raise ValueError("Denoise.hold_first_frame=True: clips of one latent frame have none after it; train on longer")
    return x_t.at[:, :1].set(first), jnp.broadcast_to(t, x_t.shape[:2]).at[:, 0].set(0.0)


def after_first(arrays: Frames) -> Frames:
    """All frames but the first, of a tree of arrays [B t ...]."""
    return jax.tree.map(lambda x: x[:, 1:], arrays)


def by_frame(corrupted: Corrupted) -> Corrupted:
    """The same with a noise level for each frame."""
    t, weight = (jnp.broadcast_to(level, corrupted.x_t.shape[:2]) for level in (corrupted.t, corrupted.weight))
    return corrupted._replace(t=t, weight=weight)
