"""DiT as published: its sizes, its cost, what it is where it differs from the modern one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import small_mesh

from dit_video.distributed.sharding import shard_params
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_B, DIT_L, DIT_S, DIT_XL, DiT, DiTConfig, PublishedDiTConfig, published
from dit_video.nn.module import Definition, Params, define
from dit_video.training.flops import count_flops

CONFIG = PublishedDiTConfig(hidden_size=32, depth=2, num_heads=4)
LABEL = jnp.array([0, 3], jnp.int32)
T = jnp.array([[0.3], [0.8]])


def defined(config: PublishedDiTConfig, num_classes: int = 3) -> Definition:
    return define(lambda key: DiT(config, 4, ClassCondition(num_classes=num_classes), rngs=nnx.Rngs(key)))


def random_params(definition: Definition) -> Params:
    rng = np.random.default_rng(0)
    shapes = sorted(definition.shapes.items())
    return {n: jnp.asarray(0.1 * rng.standard_normal(s.shape, np.float32)) for n, s in shapes}


# Counted on the official code, less its positions, which are stored there and never trained.
NUM_PARAMS = {
    "S": (DIT_S, (32_865_056, 32_920_448, 33_142_016)),
    "B": (DIT_B, (130_315_808, 130_426_496, 130_869_248)),
    "L": (DIT_L, (457_840_672, 457_988_224, 458_578_432)),
    "XL": (DIT_XL, (674_834_720, 675_000_704, 675_664_640)),
}


@pytest.mark.parametrize(("size", "counts"), NUM_PARAMS.values(), ids=NUM_PARAMS)
def test_there_are_as_many_parameters_as_in_the_official_code(size, counts):
    actual = [defined(published(size, patch_size=patch), 1000).num_params for patch in (2, 4, 8)]
    assert actual == list(counts)


# Table 4 of 2212.09748, in units of 10^9; a multiply and an add are one there.
GMACS = {
    "S": (DIT_S, (6.06, 1.41, 0.36)),
    "B": (DIT_B, (23.01, 5.56, 1.42)),
    "L": (DIT_L, (80.71, 19.70, 5.01)),
    "XL": (DIT_XL, (118.64, 29.05, 7.39)),
}


@pytest.mark.parametrize(("size", "gmacs"), GMACS.values(), ids=GMACS)
def test_an_image_of_256_pixels_costs_what_the_paper_says(size, gmacs):
    shapes = (
        jax.ShapeDtypeStruct((1, 1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1, 1), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    for patch, expected in zip((2, 4, 8), gmacs):
        definition = defined(published(size, patch_size=patch), 1000)
        call = lambda params, *args, definition=definition: definition.bind(params)(*args)  # noqa: E731
        assert count_flops(call, definition.shapes, *shapes) / 2e9 == pytest.approx(expected, rel=0.02)


def test_embedders_of_blocks_that_are_copies_of_one_compute_as_one():
    one, own = defined(CONFIG), defined(dataclasses.replace(CONFIG, block_embedders=True))
    params = random_params(one)
    copies = {n: jnp.broadcast_to(x, own.shapes[n].shape) for n, x in params.items()}
    assert {n for n, x in copies.items() if x.shape != params[n].shape} == {
        n for n in params if n.startswith(("t_embedder", "y_embedder"))
    }
    x_t = jax.random.normal(jax.random.key(1), (2, 1, 8, 8, 4))
    for actual, expected in zip(own.bind(copies).output(x_t, T, LABEL), one.bind(params).output(x_t, T, LABEL)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("own", [False, True])
def test_any_mesh_computes_the_same(own):
    definition = defined(dataclasses.replace(CONFIG, block_embedders=own))
    params = random_params(definition)
    x_t = jax.random.normal(jax.random.key(1), (2, 1, 8, 8, 4))
    network = jax.jit(lambda params, *args: definition.bind(params).output(*args))
    expected = network(params, x_t, T, LABEL)
    for axes in ({"fsdp": 2, "context": 2, "tensor": 2}, {"context": 8}):
        mesh = small_mesh(8, **axes)
        placed = jax.device_put(params, shard_params(definition.axes, definition.shapes, mesh))
        with jax.set_mesh(mesh):
            actual = network(placed, x_t, T, LABEL)
        for a, b in zip(actual, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def test_the_last_channels_are_the_variance():
    definition = defined(CONFIG)
    params = random_params(definition)
    x_t = jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 4))
    prediction, variance = definition.bind(params).output(x_t, T, LABEL)
    assert prediction.shape == variance.shape == x_t.shape
    np.testing.assert_array_equal(definition.bind(params)(x_t, T, LABEL), prediction)
    # Of each of the four cells of a patch: four channels of the one, four of the other.
    cells = np.zeros((2, 2, 2, 4), np.float32)
    cells[:, :, 1] = 1
    shifted = params | {"final_layer.bias": params["final_layer.bias"] + cells.reshape(-1)[:32]}
    moved = definition.bind(shifted).output(x_t, T, LABEL)
    np.testing.assert_allclose(moved.prediction, prediction, atol=1e-5)
    np.testing.assert_allclose(moved.variance, variance + 1, atol=1e-5)


def test_frames_are_not_told_apart():
    definition = defined(CONFIG)
    network = definition.bind(random_params(definition))
    x_t = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 4))
    np.testing.assert_allclose(network(x_t[:, ::-1], T, LABEL), network(x_t, T, LABEL)[:, ::-1], atol=1e-5)


def test_a_network_of_images_tells_places_apart():
    definition = defined(CONFIG)
    network = definition.bind(random_params(definition))
    x_t = jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 4))
    turned = network(x_t[:, :, ::-1], T, LABEL)[:, :, ::-1]
    assert float(np.abs(turned - network(x_t, T, LABEL)).max()) > 1e-3


def test_timesteps_are_levels_of_a_table_of_a_thousand():
    assert [CONFIG.time_of(n) for n in (0, 999)] == [1 / 1000, 1.0]
    modern = DiTConfig(hidden_size=32, depth=2, num_heads=4)
    assert [modern.time_of(n) for n in (0, 1000)] == [0.0, 1.0]


def test_a_fresh_network_without_normalised_queries_has_the_published_scale():
    """Xavier's over q, k and v together: a variance of 2 / (D + 3 D)."""
    config = dataclasses.replace(CONFIG, hidden_size=128)
    made = jax.jit(lambda key: DiT(config, 4, None, rngs=nnx.Rngs(key)).blocks.attention.qkv.kernel[...])
    assert float(jnp.std(made(jax.random.key(0)))) == pytest.approx(math.sqrt(1 / 256), rel=0.02)


def test_a_size_says_width_depth_heads_and_mlp_of_the_published_network():
    size = DiTConfig(hidden_size=32, depth=2, num_heads=4, mlp_ratio=2.0, shared_modulation=True)
    assert published(size, patch_size=4) == dataclasses.replace(CONFIG, mlp_ratio=2.0, patch_size=(1, 4, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30, "num_heads": 3}, r"hidden_size=30: must be a multiple of num_heads=3 and of 4"),
        ({"position_grid": 0}, r"PublishedDiTConfig.position_grid=0: must be at least 1"),
        ({"mlp_norm_epsilon": 0.0}, r"mlp_norm_epsilon=0.0: must be positive"),
        ({"time_frequency_shift": 2}, r"time_frequency_shift=2: must be between 0 and 1"),
    ],
)
def test_what_no_network_is_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
