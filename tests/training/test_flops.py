import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_XL, DiT
from dit_video.nn.module import define
from dit_video.training.flops import count_flops, peak_flops

SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 16**3


def matmul(x, y):
    return x @ y


def repeated(x, y):
    return jax.lax.scan(lambda carry, _: (matmul(carry, y), None), x, length=7)[0]


def nested(x, y):
    return jax.lax.scan(lambda carry, _: (repeated(carry, y), None), x, length=3)[0]


@jax.custom_vjp
def custom(x, y):
    return x @ y


custom.defvjp(lambda x, y: (x @ y, (x, y)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (matmul, 1),
        (jax.jit(matmul), 1),
        (repeated, 7),
        (nested, 21),
        (jax.checkpoint(repeated), 7),
        (custom, 1),
        (lambda x, y: jax.lax.cond(x[0, 0] > 0, lambda: matmul(x, y), lambda: matmul(x, matmul(x, y))), 2),
        (lambda x, y: x + jnp.sin(y), 0),
    ],
    ids=["product", "jit", "scan", "scan in scan", "checkpoint", "custom vjp", "costlier branch", "elementwise"],
)
def test_products_are_counted_as_often_as_they_are_computed(function, products):
    assert count_flops(function, SQUARE, SQUARE) == products * PRODUCT


def test_backward_is_two_forwards_and_recomputing_one_more():
    chain = lambda x, y: jnp.sum(jnp.sin(matmul(jnp.sin(matmul(x, y)), y)))  # noqa: E731
    gradient = lambda f: jax.grad(f, argnums=(0, 1))  # noqa: E731
    assert count_flops(gradient(chain), SQUARE, SQUARE) == 3 * 2 * PRODUCT
    policy = jax.checkpoint_policies.nothing_saveable
    recomputed = jax.checkpoint(chain, policy=policy)
    assert count_flops(gradient(recomputed), SQUARE, SQUARE) == 4 * 2 * PRODUCT


def test_batched_products_have_the_flops_of_all_of_them():
    x, y = jax.ShapeDtypeStruct((5, 3, 4), jnp.bfloat16), jax.ShapeDtypeStruct((5, 4, 6), jnp.bfloat16)
    assert count_flops(jnp.matmul, x, y) == 5 * 2 * 3 * 4 * 6


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (1, 2)])
def test_a_convolution_multiplies_each_output_by_its_window(groups, stride):
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    outputs = 2 * (8 // stride) ** 2 * 6
    assert count_flops(convolve, x, kernel) == 2 * outputs * 3 * 3 * 4 // groups


def test_dit_xl_2_on_256x256_images_by_formula():
    """A multiply and an add are two. The published 118.6 GMAC of the original block are within a few per cent."""
    definition = define(lambda key: DiT(DIT_XL, 4, ClassCondition(num_classes=1000), rngs=nnx.Rngs(key)))
    shapes = (
        jax.ShapeDtypeStruct((1, 1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    counted = count_flops(lambda params, *args: definition.bind(params)(*args), definition.shapes, *shapes)

    N, D, M, patch = 16 * 16, DIT_XL.hidden_size, DIT_XL.mlp_size, 2 * 2 * 4
    attention = N * D * 3 * D + 2 * N * N * D + N * D * D
    block = 6 * D * D + attention + 3 * N * D * M
    ends = N * patch * D + (256 * D + D * D) + 2 * D * D + N * D * patch
    assert counted == 2 * (DIT_XL.depth * block + ends)
    assert counted / 2e9 == pytest.approx(118.6, rel=0.03)


def test_the_peak_is_that_of_the_longest_known_name():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
