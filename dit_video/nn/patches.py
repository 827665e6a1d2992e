"""Patchify and unpatchify: latents to tokens and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dit_video.arrays import Time

PatchSize = tuple[int, int, int]


def patchify(latents: Float[Array, "B t h w c"], patch_size: PatchSize) -> Float[Array, "B s f p"]:
    """Patchify: cuts latents into patches of (frames, rows, columns).

    Returns `[B s f p]`: s = patches of one patch frame in row-major order, f = t / patch frames, and
    p = the patch's cells, ordered (frame, row, column, channel). Time stays an axis of its own, because
    noise levels (and so modulation) may differ from frame to frame; space comes first, so that places are what
    devices split once the two axes are merged into one of tokens.
    """
    B, t, h, w, c = latents.shape
    pt, ph, pw = patch_size
    if t % pt or h % ph or w % pw:
        raise ValueError(f"latents of (t, h, w) = {(t, h, w)} do not divide into patches of {patch_size}")
    x = latents.reshape(B, t // pt, pt, h // ph, ph, w // pw, pw, c)
    x = x.transpose(0, 3, 5, 1, 2, 4, 6, 7)
    return x.reshape(B, (h // ph) * (w // pw), t // pt, pt * ph * pw * c)


def unpatchify(
    patches: Float[Array, "B s f p"], patch_size: PatchSize, shape: tuple[int, int, int]
) -> Float[Array, "B t h w c"]:
    """Inverse of `patchify` for latents of `shape` = (t, h, w)."""
    (t, h, w), (pt, ph, pw) = shape, patch_size
    B = patches.shape[0]
    x = patches.reshape(B, h // ph, w // pw, t // pt, pt, ph, pw, -1)
    x = x.transpose(0, 3, 4, 1, 5, 2, 6, 7)
    return x.reshape(B, t, h, w, -1)


def latent_shape(latents: Float[Array, "B t h w c"]) -> tuple[int, int, int]:
    """Shape (t, h, w) of latents."""
    return latents.shape[1], latents.shape[2], latents.shape[3]


def to_tokens(latents: Float[Array, "B t h w c"], patch_size: PatchSize) -> Float[Array, "B N p"]:
    """Patches as one sequence of tokens, in the order of `patchify`: a place with all its frames, then the next.

    Devices have tokens on two axes of their own, of which the smaller would be padded.
    """
    patches = patchify(latents, patch_size)
    return patches.reshape(patches.shape[0], -1, patches.shape[-1])


def from_tokens(
    tokens: Float[Array, "B N p"], patch_size: PatchSize, shape: tuple[int, int, int]
) -> Float[Array, "B t h w c"]:
    """Inverse of `to_tokens` for latents of `shape` = (t, h, w)."""
    num_frames = shape[0] // patch_size[0]
    patches = tokens.reshape(tokens.shape[0], -1, num_frames, tokens.shape[-1])
    return unpatchify(patches, patch_size, shape)


def frames_first(tokens: Float[Array, "B N ..."], num_frames: int) -> Float[Array, "B N ..."]:
    """Tokens in the order of `patchify`, places first, as frames one after the other; by the number of places back."""
    by_place = tokens.reshape(len(tokens), -1, num_frames, *tokens.shape[2:])
    return jnp.swapaxes(by_place, 1, 2).reshape(tokens.shape)


def per_patch(t: Time, patch_size: PatchSize) -> Float[Array, "B #f"]:
    """One noise level per clip, per patch frame, or where cells have their own per token, in the order of `patchify`.

    What shares a patch must share its level.
    """
    pt, ph, pw = patch_size
    if t.ndim == 4:
        return t[:, ::pt, ::ph, ::pw].transpose(0, 2, 3, 1).reshape(t.shape[0], -1)
    return t if t.shape[1] == 1 else t[:, ::pt]
