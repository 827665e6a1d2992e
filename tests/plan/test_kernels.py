"""Kernels of compiled programs: FLOPs and loops in closed form, bytes that are sliced, where they were written."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dit_video.nn import norm
from dit_video.plan.kernels import Kind, costliest_places, read_kernels

ROWS, WIDTH, LAYERS = 8, 64, 5


def kernels_of(function, *shapes: tuple[int, ...]):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return read_kernels(jax.jit(function).lower(*arguments).compile().as_text())


def scanned(x, weights):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_product_in_a_loop_counts_as_often_as_the_loop_runs():
    products = [k for k in kernels_of(scanned, (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)) if k.kind is Kind.MATMUL]
    assert sum(k.runs for k in products) == LAYERS
    assert sum(k.flops for k in products) == LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_slice_of_stacked_weights_is_read_and_not_the_stack():
    moved = sum(k.bytes for k in kernels_of(scanned, (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)))
    weights = LAYERS * WIDTH * WIDTH * 4
    assert weights < moved < 5 * weights


def test_a_product_over_a_batch_has_the_flops_of_all_of_its_rows():
    """Read where sizes are known only as wholes: of two operands and a result."""
    rows = [k for k in kernels_of(lambda a, b: jnp.matmul(a, b), (3, 4, 5), (3, 5, 7)) if k.kind is Kind.MATMUL]
    assert sum(k.flops for k in rows) == 3 * 2 * 4 * 5 * 7


def test_the_costliest_place_is_named_with_its_line():
    found = costliest_places(kernels_of(norm.rms_normalize, (256, WIDTH)), 10)
    lines, first = inspect.getsourcelines(norm._normalized)
    file, line = found[0].source.split(":")
    assert file == "nn/norm.py"
    assert first < int(line) < first + len(lines)
    np.testing.assert_allclose(sum(place.share for place in found), 1.0)
