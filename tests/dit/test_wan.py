import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import untrained

from dit_video.arrays import ImageCond, Text
from dit_video.data.captions import encode_captions
from dit_video.data.signals import CaptionBytes
from dit_video.distributed.sharding import MeshShape
from dit_video.dit.condition import ClassCondition, EmbeddedText, TextCondition
from dit_video.dit.known_frames import AsChannels
from dit_video.dit.wan import Wan, WanConfig
from dit_video.nn.module import Params, define, params_of
from dit_video.tasks.latent_diffusion import Frozen
from dit_video.training.optimizer import AdamW
from dit_video.verify.sharding import compare_shardings

CONFIG = WanConfig(hidden_size=32, depth=2, num_heads=2, mlp_width=40)
WORDS = TextCondition(hidden_size=8, depth=1, num_heads=2)
CAPTIONS = jnp.asarray(encode_captions(["a seven moving up", "two"], 24))
ENCODED = EmbeddedText(hidden_size=6, pooled_size=1, num_tokens=5)
FRAME = AsChannels(image_size=10)
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def build(condition, config: WanConfig = CONFIG, **options):
    return lambda key: Wan(config, 4, condition, rngs=nnx.Rngs(key), **options)


def random_params(definition) -> Params:
    """No parameter is zero: a fresh network is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in definition.shapes.items()}


DEFINITION = define(build(WORDS))


@jax.jit
def apply(params: Params, x_t, t, cond=CAPTIONS):
    return DEFINITION.bind(params)(x_t, t, cond)


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(DEFINITION)


@pytest.fixture(scope="module")
def x_t() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 3, 4, 6, 4))


def shown(x_t: jax.Array) -> ImageCond:
    """Of the first frame of x_t, in a network that sees tokens of an image as well."""
    tokens = jax.random.normal(jax.random.key(2), (2, 5, 6))
    text = Text(tokens, jnp.array([5, 2], jnp.int32), jnp.zeros((2, 1)))
    return FRAME.show(text, x_t, jax.random.normal(jax.random.key(3), (2, 7, 10)))


def test_a_fresh_network_predicts_zero(x_t):
    fresh = jax.jit(lambda key: params_of(build(WORDS)(key)))(jax.random.key(0))
    np.testing.assert_array_equal(apply(fresh, x_t, jnp.full((2, 1), 0.5)), np.zeros_like(x_t))


def test_a_level_per_clip_is_the_same_level_in_every_frame(params, x_t):
    t = jnp.array([[0.3], [0.8]])
    per_clip, per_frame = apply(params, x_t, t), apply(params, x_t, jnp.repeat(t, 3, axis=1))
    np.testing.assert_allclose(per_clip, per_frame, **ROUNDING)
    moved = apply(params, x_t, jnp.array([[0.3, 0.3, 0.9], [0.8, 0.8, 0.8]]))
    assert not np.allclose(moved[0], per_frame[0], atol=1e-2)
    np.testing.assert_allclose(moved[1], per_frame[1], **ROUNDING)


def test_every_token_sees_every_other_and_the_caption_of_its_clip(params, x_t):
    t = jnp.full((2, 1), 0.5)
    before = apply(params, x_t, t)
    moved = apply(params, x_t.at[0, 2, 3, 3].add(1.0), t) - before
    assert (np.abs(moved[0]).max(axis=-1) > 1e-6).all()
    np.testing.assert_array_equal(moved[1], 0.0)
    moved = apply(params, x_t, t, CAPTIONS.at[1, 1].add(1)) - before
    np.testing.assert_array_equal(moved[0], 0.0)
    assert (np.abs(moved[1]).max(axis=-1) > 1e-6).all()


def test_padding_means_nothing_unless_it_is_part_of_the_network(params, x_t):
    t = jnp.full((2, 1), 0.5)
    longer = jnp.pad(CAPTIONS, ((0, 0), (0, 9)))
    np.testing.assert_allclose(apply(params, x_t, t, longer), apply(params, x_t, t), **ROUNDING)
    published = define(build(WORDS, dataclasses.replace(CONFIG, text_length=40)))
    filled = jax.jit(lambda captions: published.bind(params)(x_t, t, captions))
    np.testing.assert_allclose(filled(longer), filled(CAPTIONS), **ROUNDING)
    assert not np.allclose(filled(CAPTIONS), apply(params, x_t, t), atol=1e-2)
    with pytest.raises(ValueError, match=r"captions of 48 tokens: config\.task\.network\.text_length=40 is the most"):
        filled(jnp.pad(CAPTIONS, ((0, 0), (0, 24))))
    with pytest.raises(ValueError, match=r"captions of 5 tokens: config\.task\.network\.text_length=4 is the most"):
        define(build(ENCODED, dataclasses.replace(CONFIG, text_length=4)))


def test_positions_count_patches(params):
    """Rows and columns of other patches turn queries and keys alike."""
    coarse = define(build(WORDS, dataclasses.replace(CONFIG, patch_size=(1, 2, 1))))
    x = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 4))
    cells = x.reshape(2, 2, 2, 2, 4, 4).transpose(0, 1, 2, 4, 3, 5)  # the same patches, side by side
    fine = define(lambda key: Wan(dataclasses.replace(CONFIG, patch_size=(1, 1, 1)), 8, WORDS, rngs=nnx.Rngs(key)))
    shapes = {n: s.shape for n, s in coarse.shapes.items()}
    assert shapes == {n: s.shape for n, s in fine.shapes.items()}
    some = random_params(coarse)
    t = jnp.full((2, 1), 0.5)
    actual = (
        jax.jit(lambda p: coarse.bind(p)(x, t, CAPTIONS))(some).reshape(2, 2, 2, 2, 4, 4).transpose(0, 1, 2, 4, 3, 5)
    )
    expected = jax.jit(lambda p: fine.bind(p)(cells.reshape(2, 2, 2, 4, 8), t, CAPTIONS))(some)
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, **ROUNDING)


def test_what_stands_beside_x_t_and_the_image_reach_the_output(x_t):
    definition = define(build(ENCODED, known=FRAME))
    some, cond, t = random_params(definition), shown(x_t), jnp.full((2, 1), 0.5)
    network = jax.jit(lambda cond: definition.bind(some)(x_t, t, cond))
    before = network(cond)
    assert cond.cells.shape == (2, 3, 4, 6, 8)
    for name in ("cells", "image"):
        other = getattr(cond, name).at[1].multiply(jnp.linspace(0, 1, getattr(cond, name).shape[-1]))
        moved = network(cond._replace(**{name: other})) - before
        np.testing.assert_array_equal(moved[0], 0.0)
        assert (np.abs(moved[1]).max(axis=-1) > 1e-6).all(), name


def test_the_gradient_reaches_every_parameter(x_t):
    definition, t = define(build(ENCODED, known=FRAME)), jnp.array([[0.2, 0.5, 0.7], [0.1, 0.1, 0.9]])
    loss = lambda p: jnp.sum(jnp.square(definition.bind(p)(x_t, t, shown(x_t))))  # noqa: E731
    for name, value in jax.jit(jax.grad(loss))(random_params(definition)).items():
        # Of each layer, so that none of a stack is left out.
        assert (np.abs(value).reshape(len(value), -1).max(axis=1) > 0).all(), name


def test_layers_are_what_output_comes_by(params, x_t):
    t = jnp.full((2, 1), 0.5)
    layers = jax.jit(lambda p: DEFINITION.bind(p).layers(x_t, t, CAPTIONS))(params)
    assert layers["blocks"].shape == (2, 2, 3 * 2 * 3, 32)
    fewer = define(build(WORDS, dataclasses.replace(CONFIG, depth=1)))
    first = {n: p[:1] if n.startswith("blocks.") else p for n, p in params.items()}
    one = jax.jit(lambda p: fewer.bind(p).layers(x_t, t, CAPTIONS))(first)
    np.testing.assert_allclose(one["blocks"][0], layers["blocks"][0], **ROUNDING)


def test_the_program_does_not_grow_with_depth(x_t):
    def length(depth: int) -> int:
        definition = define(build(WORDS, dataclasses.replace(CONFIG, depth=depth)))
        step = jax.grad(lambda p: jnp.sum(definition.bind(p)(x_t, jnp.full((2, 1), 0.5), CAPTIONS)))
        return jax.jit(step).lower(definition.shapes).as_text().count("\n")

    assert length(2) == length(9)


def test_half_precision_computes_close_to_float32_and_predicts_float32(params, x_t):
    definition = define(build(WORDS, dtype=jnp.bfloat16))
    assert {shape.dtype for shape in definition.shapes.values()} == {jnp.dtype("float32")}
    t = jnp.full((2, 1), 0.5)
    half, full = jax.jit(lambda p: definition.bind(p)(x_t, t, CAPTIONS))(params), apply(params, x_t, t)
    assert half.dtype == jnp.float32
    # bfloat16 has eight bits.
    assert 0 < float(np.abs(half - full).max() / np.abs(full).max()) < 0.1


def test_it_is_conditioned_on_text():
    for condition in (None, ClassCondition(num_classes=3)):
        with pytest.raises(ValueError, match="every block of a Wan attends to text"):
            define(build(condition))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "hidden_size=32: must be num_heads=3 times an even head size"),
        ({"mlp_width": 0}, "mlp_width=0: must be at least 1"),
        ({"num_heads": 0}, "num_heads=0: must be at least 1"),
        ({"text_length": 0}, "text_length=0: must be at least 1"),
    ],
)
def test_a_network_that_cannot_be_is_an_error_that_names_the_field(change, message):
    with pytest.raises(ValueError, match=f"WanConfig.{message}"):
        dataclasses.replace(CONFIG, **change)


@pytest.fixture(scope="module")
def task(denoise):
    """Trained from captions, byte by byte, with as many heads as devices."""
    network = WanConfig(hidden_size=64, depth=2, num_heads=8, mlp_width=64, patch_size=(1, 1, 1), text_length=20)
    return dataclasses.replace(denoise, network=network, condition=TextCondition(hidden_size=64, depth=1, num_heads=8))


@pytest.mark.slow
def test_it_learns_to_denoise_captioned_clips(task, codec, cached):
    batch = cached._replace(signals={"caption": encode_captions([f"clip {n}" for n in range(8)], 16)})
    definition = define(task.init)
    initial = jax.jit(lambda key: params_of(task.init(key)))(jax.random.key(0))

    @jax.jit
    def step(params, key):
        def loss(p):
            return task.loss(definition.bind(p), Frozen(codec), batch, key, jnp.int32(0))[0]

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    before, params = step(initial, jax.random.key(1))
    assert float(step(params, jax.random.key(1))[0]) < float(before)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(task):
    experiment = dataclasses.replace(untrained(task, size=(32, 32)), optimizer=AdamW(learning_rate=1e-3))
    experiment = dataclasses.replace(
        experiment, data=dataclasses.replace(experiment.data, signals={"caption": CaptionBytes(num_bytes=16)})
    )
    actual = next(compare_shardings(experiment, [MeshShape(data=1, fsdp=2, context=2, tensor=2)], num_steps=2))
    assert actual.refused is None
    assert actual.loss <= 1e-6
    assert actual.gradient[1] <= 1e-5, actual.gradient[0]
    assert actual.equal
