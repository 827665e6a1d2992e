"""Denoiser and decoder as StableHLO programs (`jax.export`): any batch, on CPU, CUDA and TPU, without our code.

A program takes the weights as its first argument, a dict by name as safetensors loads it, like the compiled
steps of training do. Baked in they would double the folder, be constants that XLA tries to fold, and end at the
2 GiB that a serialised program may have: DiT-XL in float32 is larger. One program then serves averaged and raw weights.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array
from safetensors.numpy import load_file

from dit_video.arrays import Labels, Latents, Time, Video
from dit_video.export.weights import CODEC, MODEL, Content
from dit_video.nn.module import Definition, Params, params_of
from dit_video.tasks.denoise import Denoise

DENOISER = "denoiser.stablehlo"
DECODER = "decoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
BATCH_SIZES = (1, 3)

# Largest difference over largest value. The same arithmetic is compiled twice; only fusion may round differently.
DENOISER_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
# Grey levels of 255.
DECODER_TOLERANCE = {"float32": 1, "bfloat16": 4}
