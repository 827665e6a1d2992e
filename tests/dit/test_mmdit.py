"""MMDiT: its published sizes, its form for video, and what text does in it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from toys import small_mesh

from dit_video.arrays import Text
from dit_video.data.batch import Batch
from dit_video.data.captions import encode_captions
from dit_video.distributed.sharding import place, shard_params
from dit_video.dit.condition import ClassCondition, EmbeddedText, TextCondition
from dit_video.dit.mmdit import SD3_5_LARGE, SD3_5_MEDIUM, SD3_MEDIUM, MMDiTConfig, PositionTable
from dit_video.dit.network import Remat
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.tasks.latent_diffusion import Denoise, Frozen

# One block of each kind: with a second attention, without, and the last.
CONFIG = MMDiTConfig(hidden_size=32, depth=3, num_heads=2, num_dual_blocks=1)
CONDITION = EmbeddedText(hidden_size=6, pooled_size=5, num_tokens=4)
BYTES = TextCondition(hidden_size=16, depth=1, num_heads=2, drop_rate=0.0)
T = jnp.array([[0.3], [0.8]])
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def defined(config: MMDiTConfig = CONFIG, *, channels: int = 4, condition=CONDITION, dtype=jnp.float32) -> Definition:
    return define(lambda key: config.build(channels, condition, dtype=dtype, rngs=nnx.Rngs(key)))


DEFINITION = defined()


def random_params(definition: Definition) -> Params:
    """No parameter is zero: a fresh network is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    noise = {n: 0.1 * rng.standard_normal(s.shape, np.float32) for n, s in sorted(definition.shapes.items())}
    return {n: jnp.asarray(1 + x if n.endswith("norm.scale") else x) for n, x in noise.items()}


@jax.jit
def apply(params: Params, x_t, t, text) -> jax.Array:
    return DEFINITION.bind(params)(x_t, t, text)


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(DEFINITION)


@pytest.fixture(scope="module")
def x_t() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 4))


@pytest.fixture(scope="module")
def text() -> Text:
    keys = jax.random.split(jax.random.key(2), 2)
    tokens, pooled = jax.random.normal(keys[0], (2, 4, 6)), jax.random.normal(keys[1], (2, 5))
    return Text(tokens, jnp.array([2, 4], jnp.int32), pooled)


# Counted on diffusers' class with the published configurations, without the table of positions, which is no parameter.
NUM_PARAMS = {
    "SD3-medium": (SD3_MEDIUM, 2_028_328_000),
    "SD3.5-medium": (SD3_5_MEDIUM, 2_243_171_520),
    "SD3.5-large": (SD3_5_LARGE, 8_056_627_520),
}


@pytest.mark.parametrize(("size", "count"), NUM_PARAMS.values(), ids=NUM_PARAMS)
def test_there_are_as_many_parameters_as_published(size, count):
    condition = EmbeddedText(hidden_size=4096, pooled_size=2048, num_tokens=333)
    assert defined(size, channels=16, condition=condition).num_params == count


def test_a_fresh_network_predicts_zero(x_t, text):
    build = lambda key: params_of(CONFIG.build(4, CONDITION, dtype=jnp.float32, rngs=nnx.Rngs(key)))  # noqa: E731
    prediction = apply(jax.jit(build)(jax.random.key(0)), x_t, T, text)
    assert prediction.shape == x_t.shape
    np.testing.assert_array_equal(prediction, 0.0)


def test_a_level_per_clip_is_the_same_level_in_every_frame(params, x_t, text):
    per_frame = apply(params, x_t, jnp.repeat(T, 3, axis=1), text)
    np.testing.assert_allclose(apply(params, x_t, T, text), per_frame, **ROUNDING)
    other = apply(params, x_t, jnp.array([[0.3, 0.3, 0.9], [0.8, 0.8, 0.8]]), text)
    assert not np.allclose(other[0], per_frame[0], atol=1e-2)
    np.testing.assert_array_equal(other[1], per_frame[1])


def test_frames_and_places_are_told_apart(params, x_t, text):
    plain = apply(params, x_t, T, text)
    for axis in (1, 2, 3):
        turned = jnp.flip(apply(params, jnp.flip(x_t, axis), T, text), axis)
        assert float(np.abs(turned - plain).max()) > 1e-3


def test_text_reaches_every_token_and_stays_in_its_clip(params, x_t, text):
    plain = apply(params, x_t, T, text)
    for field in ("tokens", "pooled"):
        changed = text._replace(**{field: getattr(text, field).at[0, 0].add(1.0)})
        moved = np.abs(apply(params, x_t, T, changed) - plain)
        assert (moved[0].max(axis=-1) > 1e-5).all()
        np.testing.assert_array_equal(moved[1], 0.0)


def test_text_is_told_apart_by_its_encoder_alone(params, x_t, text):
    """Its tokens have no positions here: another order of those that mean something is the same text."""
    turned = text._replace(tokens=text.tokens.at[0, :2].set(text.tokens[0, 1::-1]).at[1].set(text.tokens[1, ::-1]))
    np.testing.assert_allclose(apply(params, x_t, T, turned), apply(params, x_t, T, text), **ROUNDING)


def test_padding_changes_nothing_unless_it_is_attended_to(params, x_t, text):
    padded = text._replace(tokens=text.tokens.at[0, 2:].set(7.0))
    np.testing.assert_allclose(apply(params, x_t, T, padded), apply(params, x_t, T, text), **ROUNDING)
    reading = defined(dataclasses.replace(CONFIG, attend_padding=True))
    call = jax.jit(lambda text: reading.bind(params)(x_t, T, text))
    assert float(np.abs(call(padded) - call(text))[0].max()) > 1e-3
    np.testing.assert_allclose(call(text)[1], apply(params, x_t, T, text)[1], **ROUNDING)


def test_layers_are_those_of_all_blocks_in_their_order(params, x_t, text):
    layers = jax.jit(lambda params: DEFINITION.bind(params).layers(x_t, T, text))(params)
    assert {name: value.shape for name, value in layers.items()} == {
        "conditioning": (2, 1, 32),
        "blocks.video": (3, 2, 12, 32),
        "blocks.text": (3, 2, 4, 32),
    }
    # The last block reads text and writes none.
    np.testing.assert_array_equal(layers["blocks.text"][2], layers["blocks.text"][1])
    assert float(np.abs(layers["blocks.text"][1] - layers["blocks.text"][0]).max()) > 1e-3


def test_a_last_block_that_writes_text_is_as_the_others(x_t, text):
    writing = defined(dataclasses.replace(CONFIG, text_output=True))
    names = {name.split(".", 1)[1] for name in writing.shapes if name.startswith("blocks.")}
    assert {shape.shape[0] for name, shape in writing.shapes.items() if name.startswith("blocks.")} == {2}
    assert names >= {"text_mlp.up.kernel", "attention.text.out.kernel"}
    assert not any(name.startswith("last_block.") for name in writing.shapes)
    layers = jax.jit(lambda params: writing.bind(params).layers(x_t, T, text))(random_params(writing))
    assert float(np.abs(layers["blocks.text"][2] - layers["blocks.text"][1]).max()) > 1e-3


def test_half_precision_computes_close_to_float32_and_predicts_float32(params, x_t, text):
    definition = defined(dtype=jnp.bfloat16)
    assert {shape.dtype for shape in definition.shapes.values()} == {jnp.dtype("float32")}
    half, full = jax.jit(lambda p: definition.bind(p)(x_t, T, text))(params), apply(params, x_t, T, text)
    assert half.dtype == jnp.float32
    # bfloat16 has eight bits.
    assert 0 < float(np.abs(half - full).max() / np.abs(full).max()) < 0.1


# Of images, with the published positions.

TABLE = PositionTable(size=6, origin=2.0, step=0.5)
OF_IMAGES = MMDiTConfig(hidden_size=32, depth=1, num_heads=2, position_table=TABLE)


def test_an_image_has_the_middle_of_the_table(text):
    """So what is around it moves nothing: a larger table of the same positions is the same network."""
    x_t = jax.random.normal(jax.random.key(1), (2, 1, 4, 8, 4))

    def predict(table: PositionTable) -> jax.Array:
        definition = defined(dataclasses.replace(OF_IMAGES, position_table=table))
        return jax.jit(lambda params: definition.bind(params)(x_t, T, text))(random_params(definition))

    here = predict(TABLE)
    np.testing.assert_allclose(predict(PositionTable(size=10, origin=4.0, step=0.5)), here, **ROUNDING)
    assert float(np.abs(predict(PositionTable(size=10, origin=3.0, step=0.5)) - here).max()) > 1e-3
    np.testing.assert_array_equal(TABLE.middle(2), [0.0, 0.5])


def test_published_positions_of_1024_pixels_are_those_of_256_and_between():
    for size in (SD3_MEDIUM, SD3_5_MEDIUM, SD3_5_LARGE):
        np.testing.assert_array_equal(size.position_table.middle(64), np.arange(64) / 4)


def test_an_image_larger_than_the_table_is_refused(text):
    definition = defined(OF_IMAGES)
    call = lambda params: definition.bind(params)(jnp.zeros((2, 1, 4, 14, 4)), T, text)  # noqa: E731
    with pytest.raises(ValueError, match="latents are 7 patches wide or high, the table of positions 6"):
        jax.eval_shape(call, definition.shapes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 32}, r"hidden_size=32: must be num_heads=32 times an even"),
        ({"num_heads": 1, "hidden_size": 30, "position_table": TABLE}, r"hidden_size=30: must be a multiple of 4"),
        ({"num_dual_blocks": 4}, r"num_dual_blocks=4: must be between 0 and depth=3"),
        ({"depth": 0}, r"depth=0: must be at least 1"),
    ],
)
def test_what_no_network_is_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_what_no_table_is_is_refused():
    for changes, message in (
        ({"size": 0}, "size=0: must be at least 1"),
        ({"step": 0.0}, "step=0.0: must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TABLE, **changes)


@pytest.mark.parametrize("condition", [None, ClassCondition(num_classes=3)])
def test_without_text_there_is_no_such_network(condition):
    with pytest.raises(ValueError, match=r"config.task.condition=.*: an MMDiT has a stream of text"):
        defined(condition=condition)


# In the task that trains every network.


class Step(NamedTuple):
    """Loss and gradient, and the function that gave them."""

    loss: np.ndarray
    gradient: dict[str, np.ndarray]
    differentiate: Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, dict[str, np.ndarray]]]


def step_of(task: Denoise, codec, moments: np.ndarray, mesh: Mesh) -> Step:
    """Of random weights."""
    definition = define(task.init)
    batch = Batch(moments=moments, signals={"caption": encode_captions(["up", "down", "", "left"] * 2, 8)})

    def loss(params: Params, batch: Batch) -> jax.Array:
        return task.loss(definition.bind(params), Frozen(codec), batch, jax.random.key(0), jnp.int32(0))[0]

    compiled = jax.jit(jax.value_and_grad(loss))

    def differentiate(params):
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, shard_params(definition.axes, definition.shapes, mesh))
            return jax.device_get(compiled(placed, place(batch, mesh)))

    return Step(*differentiate(random_params(definition)), differentiate)


@pytest.fixture(scope="module")
def task(denoise) -> Denoise:
    network = MMDiTConfig(hidden_size=32, depth=2, num_heads=4, num_dual_blocks=1, patch_size=(1, 1, 1))
    return dataclasses.replace(denoise, network=network, condition=BYTES)


@pytest.fixture(scope="module")
def step(task, codec, cached) -> Step:
    return step_of(task, codec, cached.moments, small_mesh())


def test_every_parameter_learns_but_what_last_queries_of_text_are_made_of(step):
    """They are there as published, and nothing reads what they ask."""
    last = "last_block.attention.text"
    assert {name for name, g in step.gradient.items() if not np.any(g)} == {f"{last}.query_norm.scale"}
    query, key, value = np.moveaxis(step.gradient[f"{last}.qkv.kernel"], 2, 0)
    assert [bool(np.any(part)) for part in (query, key, value)] == [False, True, True]


def test_a_step_down_the_gradient_lowers_the_loss(step, task):
    params = random_params(define(task.init))
    stepped = {name: np.asarray(value) - 1e-3 * step.gradient[name] for name, value in params.items()}
    assert step.differentiate(stepped)[0] < step.loss


@pytest.mark.parametrize(
    ("axes", "remat"),
    [
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, Remat.NOTHING_RECOMPUTED, marks=pytest.mark.slow),
        ({"fsdp": 2, "context": 2, "tensor": 2}, Remat.FULL),
    ],
    ids=["data, fsdp, tensor", "fsdp, context, tensor, recomputed"],
)
def test_eight_devices_compute_what_one_does(axes, remat, task, codec, cached, step):
    task = dataclasses.replace(task, network=dataclasses.replace(task.network, remat=remat))
    found = step_of(task, codec, cached.moments, small_mesh(8, **{"data": 1, **axes}))
    np.testing.assert_allclose(found.loss, step.loss, rtol=1e-6)
    for name, gradient in step.gradient.items():
        assert np.linalg.norm(found.gradient[name] - gradient) <= 1e-5 * np.linalg.norm(gradient), name
