"""Denoiser and decoder as StableHLO programs (`jax.export`): any batch, on CPU, CUDA and TPU, without our code.

A program takes the weights as its first argument, a dict by name as safetensors loads it, like the compiled
steps of training do. Baked in they would double the folder, be constants that XLA tries to fold, and end at the
2 GiB that a serialised program may have: DiT-XL in float32 is larger. One program then serves averaged and raw weights.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array
from safetensors.numpy import load_file

from dit_video.export.inputs import random_cond
from dit_video.export.weights import CODEC, MODEL, Content, Denoiser, ExportMismatch, define_codec
from dit_video.nn.module import Params, define, params_of

DENOISER = "denoiser.stablehlo"
DECODER = "decoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
BATCH_SIZES = (1, 3)

# Tolerances of the denoiser (largest difference over largest value) and of the decoder (grey levels of 255). Sums are
# taken in another order for another batch size; where factors are rounded first, to bfloat16 or, as GPUs and TPUs do
# with float32 by default, to TF32 or bfloat16, that shows.
EXACT_TOLERANCE = (1e-4, 1.0)
ROUNDED_TOLERANCE = (2e-2, 4.0)

Inputs = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Largest difference between an exported program and its network, over all of `BATCH_SIZES`."""

    file: str
    error: float
    tolerance: float
    measure: str


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
    """A function of (weights by name, inputs) to be exported.

    Attributes:
        weights: file whose tensors are its first argument.
        example: (batch size) -> random inputs of that size.
        distance: of two outputs, as `measure` names it.
    """

    file: str
    weights: str
    call: Callable[..., Array]
    params: Params
    example: Callable[[int], Inputs]
    distance: Callable[[np.ndarray, np.ndarray], float]
    measure: str
    tolerance: float


def write_programs(content: Content, folder: Path) -> list[Compared]:
    """Writes decoder and, of a diffusion run, denoiser into `folder`, where the weights are already.

    Each is loaded again, called with the weights on disk and compared with the run's own network.

    Raises:
        ExportMismatch: a program differs from the network by more than its tolerance.
    """
    programs = [_decoder(content)]
    if content.denoiser is not None:
        programs.insert(0, _denoiser(content.denoiser, content.latent_shape, content.signals))
    compared = []
    for program in programs:
        (folder / program.file).write_bytes(_serialize(program))
        compared.append(_compare(program, folder))
    return compared


def _denoiser(denoiser: Denoiser, shape: tuple[int, int, int, int], signals: Mapping[str, Any]) -> ExportedProgram:
    """(weights, x_t [b t h w c], t [b 1], the arrays of its condition) -> prediction; t is [b t] where each frame has
    its own.
    """
    task = denoiser.task
    definition = define(task.init)
    cond_tree = jax.tree.structure(random_cond(task, 1, shape, signals))

    def denoise(params: Params, x_t: Array, t: Array, *cond: Array) -> Array:
        return definition.bind(params)(x_t, t, jax.tree.unflatten(cond_tree, cond))

    def example(batch_size: int) -> Inputs:
        rng = np.random.default_rng(0)
        x_t = rng.standard_normal((batch_size, *shape), np.float32)
        t = rng.random((batch_size, shape[0] if task.objective.per_frame else 1), np.float32)
        return x_t, t, *jax.tree.leaves(random_cond(task, batch_size, shape, signals))

    return ExportedProgram(
        file=DENOISER,
        weights=MODEL,
        call=denoise,
        params=params_of(denoiser.network),
        example=example,
        distance=lambda a, b: float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float32).tiny)),
        measure="largest difference over largest value",
        tolerance=_tolerance(task.precision.dtype)[0],
    )


def _decoder(content: Content) -> ExportedProgram:
    """Decoder program: (weights, whitened latents [b t h w c]) -> uint8 video [b T H W 3]."""
    vae, shape = content.codec.vae, content.latent_shape
    dtype = jnp.dtype(vae.dtype)
    definition = define_codec(vae.config, dtype)

    def decode(params: Params, latents: Array) -> Array:
        return definition.bind(params).decode(latents)

    def example(batch_size: int) -> Inputs:
        return (np.random.default_rng(0).standard_normal((batch_size, *shape), np.float32),)

    return ExportedProgram(
        file=DECODER,
        weights=CODEC,
        call=decode,
        params=params_of(content.codec),
        example=example,
        distance=lambda a, b: float(np.max(np.abs(a.astype(np.int32) - b))),
        measure="grey levels",
        tolerance=_tolerance(dtype)[1],
    )


def _tolerance(dtype: jnp.dtype) -> tuple[float, float]:
    exact = dtype == jnp.float32 and jax.default_backend() == "cpu"
    return EXACT_TOLERANCE if exact else ROUNDED_TOLERANCE


def _serialize(program: ExportedProgram) -> bytearray:
    (b,) = export.symbolic_shape("b")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.params)
    inputs = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in program.example(1)]
    return export.export(jax.jit(program.call), platforms=PLATFORMS)(shapes, *inputs).serialize()


def _compare(program: ExportedProgram, folder: Path) -> Compared:
    path = folder / program.file
    exported = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    weights = load_file(folder / program.weights)
    inputs = program.example(max(BATCH_SIZES))
    expected = np.asarray(jax.jit(program.call)(jax.device_get(program.params), *inputs))
    error = 0.0
    for batch_size in BATCH_SIZES:
        # The network sees each clip by itself, so its outputs for the largest batch serve for all sizes.
        actual = np.asarray(exported(weights, *(x[:batch_size] for x in inputs)))
        distance = program.distance(actual, expected[:batch_size])
        # Not `>`: a difference that is no number is too large as well.
        if not distance <= program.tolerance:
            raise ExportMismatch(
                f"{path}: differs from the run's network at batch size {batch_size}: {program.measure} {distance:.3g}, "
                f"allowed {program.tolerance:.3g}"
            )
        error = max(error, distance)
    return Compared(program.file, error, program.tolerance, program.measure)
