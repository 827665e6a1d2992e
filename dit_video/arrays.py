"""Array types and axis letters (jaxtyping) that cross function boundaries.

Axis letters, the same in every file:
    B batch; T H W C video in pixels; t h w c latents; N video tokens; L text tokens;
    D model width; K attention heads; V vocabulary.

One word per representation:
    video    uint8 [B T H W C], 0..255: what files, batches and pictures hold;
    pixels   float [B T H W C] in [-1, 1]: what the VAE sees;
    moments  float [B t h w 2c]: mean and log-variance of the VAE's posterior, as stored in a latent cache;
    latents  float [B t h w c]: sampled and whitened to zero mean and unit variance per channel, what the DiT sees;
    tokens   float [B N D]: latents cut into patches and embedded;
    caption  uint8 [B L]: UTF-8 after a token that begins it, then zeros (data/captions.py makes it);
    text     float [B L E] and [B P]: a caption as a network attends to it and is modulated by it.

Axis names bind within one call: `#t` means "t or 1".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Video = UInt8[Array | np.ndarray, "B T H W C"]
Pixels = Float[Array, "B T H W C"]
Moments = Float[Array, "B t h w m"]
Latents = Float[Array, "B t h w c"]
# One noise level per clip [B 1], per latent frame [B t], or per latent cell [B t h w] where a region is known.
Time = Float[Array, "B #t"] | Float[Array, "B t h w"]
Labels = Int[Array, "B"]
Captions = UInt8[Array, "B L"]


class Output(NamedTuple):
    """Output of a denoising network for x_t, float32 and of its shape.

    Attributes:
        prediction: the target of the objective: noise, data, v or velocity.
        variance: where between its bounds the log-variance of a step back lies, -1 to 1 (2102.09672, equation 15);
            None unless the network learns it.
    """

    prediction: Latents
    variance: Latents | None = None


class Mean(NamedTuple):
    """Mean over those of a batch's values that are of some kind; over none of them it is not there, and not 0.

    Attributes:
        total: their sum; over several parts of a batch sums and counts are added up before one is divided by the other.
        count: how many they are.
    """

    total: Float[Array | np.ndarray, ""]
    count: Float[Array | np.ndarray, ""]


class Text(NamedTuple):
    """Text embeddings of captions.

    Attributes:
        tokens: of each caption the first `num_tokens`; what follows them means nothing.
        pooled: one vector for the whole caption.
    """

    tokens: Float[Array | np.ndarray, "B L E"]
    num_tokens: Int[Array | np.ndarray, "B"]
    pooled: Float[Array | np.ndarray, "B P"]


class ImageCond(NamedTuple):
    """What a network that continues an image is given.

    Attributes:
        text: its caption, as a condition on text gives it.
        cells: channels that are put beside those of x_t: which frames are known, and latents of them.
        image: tokens of an image encoder, where the network attends to such.
    """

    text: Captions | Text
    cells: Float[Array | np.ndarray, "B t h w m"]
    image: Float[Array | np.ndarray, "B I E"] | None = None
