"""The alphabet: axis letters and array types that cross function boundaries.

Axis letters, the same in every file:
    B batch; T H W C video in pixels; t h w c latents; N video tokens; L text tokens;
    D model width; K attention heads; V vocabulary.

One word per representation:
    video    uint8 [B T H W C], 0..255: what files, batches and pictures hold;
    pixels   float [B T H W C] in [-1, 1]: what the VAE sees;
    moments  float [B t h w 2c]: mean and log-variance of the VAE's posterior, as stored in a latent cache;
    latents  float [B t h w c]: sampled and whitened to zero mean and unit variance per channel, what the DiT sees;
    tokens   float [B N D]: latents cut into patches and embedded;
    caption  uint8 [B L]: UTF-8 after a token that begins it, then zeros (data/captions.py makes it).

Axis names bind within one call: `#t` means "t or 1".
"""

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Video = UInt8[Array | np.ndarray, "B T H W C"]
Pixels = Float[Array, "B T H W C"]
Moments = Float[Array, "B t h w m"]
Latents = Float[Array, "B t h w c"]
# One noise level per clip [B 1] or per latent frame [B t].
Time = Float[Array, "B #t"]
Labels = Int[Array, "B"]
Captions = UInt8[Array, "B L"]
