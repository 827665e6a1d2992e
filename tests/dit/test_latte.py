"""Latte: four ways to split space and time, each against NumPy, and what each lets a token see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference_latte import Caption, latte
from toys import SMALL_DENOISE, small_mesh, untrained

from dit_video.arrays import Text
from dit_video.data.captions import encode_captions
from dit_video.distributed.sharding import MeshShape, shard_params
from dit_video.dit.condition import ClassCondition, Condition, EmbeddedText, TextCondition
from dit_video.dit.latte import LATTE_B, LATTE_L, LATTE_S, LATTE_TEXT, LATTE_XL, LatteConfig, Variant, frame_positions
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.tasks.latent_diffusion import Denoise, Frozen
from dit_video.verify.sharding import compare_shardings

CONFIG = LatteConfig(hidden_size=16, depth=4, num_heads=2, patch_size=(1, 1, 1), learned_variance=True)
CLASSES = ClassCondition(num_classes=3)
TEXT = EmbeddedText(hidden_size=8, pooled_size=1, num_tokens=5)
LABEL = jnp.array([0, 3], jnp.int32)
T = jnp.array([[0.3], [0.8]])
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
VARIANTS = pytest.mark.parametrize("variant", Variant, ids=[variant.value for variant in Variant])
# Of what takes long to compile, one at each start of the tests.
ONE_VARIANT = pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=variant.value, marks=[] if variant is Variant.LATE else [pytest.mark.slow])
        for variant in Variant
    ],
)


def defined(config: LatteConfig, condition: Condition | None = CLASSES, channels: int = 2) -> Definition:
    return define(lambda key: config.build(channels, condition, dtype=jnp.float32, rngs=nnx.Rngs(key)))


def random_params(definition: Definition) -> Params:
    """No parameter is zero: a fresh network is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    shapes = sorted(definition.shapes.items())
    return {n: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)) for n, s in shapes}


def applied(definition: Definition, method: str = "__call__"):
    """A method of the network as a compiled function of its parameters and arguments."""
    return jax.jit(lambda params, *args: getattr(definition.bind(params), method)(*args))


def random_latents(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, *shape))


def caption_of(*num_tokens: int) -> Text:
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((len(num_tokens), TEXT.num_tokens, TEXT.hidden_size), np.float32)
    return Text(jnp.asarray(tokens), jnp.asarray(num_tokens, jnp.int32), jnp.zeros((len(num_tokens), 1)))


# Counted on the official code, less its positions, which are stored there and never trained; of no class, and of 101.
NUM_PARAMS = {
    "S": (LATTE_S, (32_480_672, 32_536_064, 32_757_632), 32_519_840),
    "B": (LATTE_B, (129_547_040, 129_657_728, 130_100_480), 129_625_376),
    "L": (LATTE_L, (456_815_648, 456_963_200, 457_553_408), 456_920_096),
    "XL": (LATTE_XL, (673_681_568, 673_847_552, 674_511_488), 673_799_072),
}


@pytest.mark.parametrize(("size", "alone", "of_class"), NUM_PARAMS.values(), ids=NUM_PARAMS)
def test_there_are_as_many_parameters_as_in_the_official_code(size, alone, of_class):
    actual = [dataclasses.replace(size, patch_size=(1, patch, patch)) for patch in (2, 4, 8)]
    assert [defined(config, None, 4).num_params for config in actual] == list(alone)
    assert defined(size, ClassCondition(num_classes=101), 4).num_params == of_class


def test_the_network_of_text_has_as_many_parameters_as_in_diffusers():
    condition = EmbeddedText(hidden_size=4096, pooled_size=1, num_tokens=120)
    assert defined(LATTE_TEXT, condition, 4).num_params == 1_057_246_880


@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 2, 4)], ids=str)
@VARIANTS
def test_of_a_class_it_is_what_the_paper_says(variant, shape):
    config = dataclasses.replace(CONFIG, variant=variant, patch_size=(1, 2, 2))
    definition = defined(config)
    params, x_t = random_params(definition), random_latents(*shape, 2)
    output = applied(definition, "output")(params, x_t, T, LABEL)
    actual = np.concatenate([output.prediction, output.variance], axis=-1)
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    options = {"variant": variant.value, "num_heads": 2, "patch": 2}
    for clip, (level, label) in enumerate(zip((0.3, 0.8), (0, 3))):
        expected = latte(weights, np.asarray(x_t[clip], np.float64), level, label=label, **options)
        np.testing.assert_allclose(actual[clip], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@VARIANTS
def test_of_text_it_is_what_the_paper_says(variant):
    config = dataclasses.replace(CONFIG, variant=variant, shared_modulation=True, learned_variance=False)
    definition = defined(config, TEXT)
    params, x_t, text = random_params(definition), random_latents(3, 2, 2, 2), caption_of(2, 5)
    actual = applied(definition)(params, x_t, T, text)
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    for clip, (level, num_tokens) in enumerate(zip((0.3, 0.8), (2, 5))):
        caption = Caption(np.asarray(text.tokens[clip], np.float64), num_tokens)
        x = np.asarray(x_t[clip], np.float64)
        expected = latte(weights, x, level, variant=variant.value, num_heads=2, patch=1, caption=caption)
        np.testing.assert_allclose(actual[clip], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# After the first layer, which (place, frame) a change of place 1 in frame 2 reaches, of 4 places and 3 frames.
_SAME_PLACE, _SAME_FRAME = np.zeros((2, 4, 3), bool)
_SAME_PLACE[1], _SAME_FRAME[:, 2] = True, True
REACHED = {
    (Variant.INTERLEAVED, "blocks"): np.ones((4, 3), bool),
    (Variant.LATE, "blocks.spatial"): _SAME_FRAME,
    (Variant.LATE, "blocks.temporal"): np.ones((4, 3), bool),
    (Variant.FACTORISED, "blocks"): np.ones((4, 3), bool),
    (Variant.SPLIT_HEADS, "blocks"): _SAME_PLACE | _SAME_FRAME,
}


@pytest.mark.parametrize(("variant", "name"), REACHED, ids=[f"{v.value}-{name}" for v, name in REACHED])
def test_a_token_sees_what_its_variant_lets_it_see(variant, name):
    definition = defined(dataclasses.replace(CONFIG, variant=variant))
    params, layers, x_t = random_params(definition), applied(definition, "layers"), random_latents(3, 2, 2, 2)
    moved = x_t.at[:, 2, 0, 1].add(1.0)
    before, after = (layers(params, x, T, LABEL)[name][0].reshape(2, 4, 3, -1) for x in (x_t, moved))
    reached = np.abs(after - before).max((0, 3)) > 1e-6
    np.testing.assert_array_equal(reached, REACHED[variant, name])


def test_the_first_half_of_late_fusion_never_mixes_frames_and_does_not_know_their_order():
    definition = defined(dataclasses.replace(CONFIG, variant=Variant.LATE))
    params, layers, x_t = random_params(definition), applied(definition, "layers"), random_latents(3, 2, 2, 2)
    straight, turned = (layers(params, x, T, LABEL) for x in (x_t, x_t[:, ::-1]))

    def last(actual, name: str) -> np.ndarray:
        return np.asarray(actual[name][-1]).reshape(2, 4, 3, -1)

    np.testing.assert_allclose(last(turned, "blocks.spatial")[:, :, ::-1], last(straight, "blocks.spatial"), **ROUNDING)
    assert np.abs(last(turned, "blocks.temporal")[:, :, ::-1] - last(straight, "blocks.temporal")).max() > 1e-2


@VARIANTS
def test_text_is_read_by_blocks_that_attend_over_space_and_no_others(variant):
    definition = defined(dataclasses.replace(CONFIG, variant=variant, shared_modulation=True), TEXT)
    readers = {name.rpartition(".cross_attention")[0] for name in definition.shapes if "cross_attention" in name}
    assert readers == ({"blocks.spatial"} if variant.paired else {"blocks"})
    params, network, x_t = random_params(definition), applied(definition), random_latents(2, 2, 2, 2)
    text = caption_of(2, 5)
    actual = network(params, x_t, T, text)
    # What lies behind the tokens of a caption means nothing; what lies before does.
    behind = text._replace(tokens=text.tokens.at[0, 2:].add(9.0))
    np.testing.assert_allclose(network(params, x_t, T, behind), actual, **ROUNDING)
    within = network(params, x_t, T, text._replace(tokens=text.tokens.at[0, 1].add(1.0)))
    assert float(np.abs(within - actual)[0].min(axis=-1).max()) > 1e-4
    np.testing.assert_allclose(within[1], actual[1], **ROUNDING)


@VARIANTS
def test_a_level_per_clip_is_the_same_level_in_every_frame(variant):
    definition = defined(dataclasses.replace(CONFIG, variant=variant))
    params, network, x_t = random_params(definition), applied(definition), random_latents(3, 2, 2, 2)
    per_frame = network(params, x_t, jnp.repeat(T, 3, axis=1), LABEL)
    np.testing.assert_allclose(network(params, x_t, T, LABEL), per_frame, **ROUNDING)
    other = network(params, x_t, jnp.repeat(T, 3, axis=1).at[:, 2].set(0.5), LABEL)
    assert float(np.abs(other - per_frame)[:, 2].max()) > 1e-3


@pytest.mark.parametrize(
    ("variant", "condition"),
    [
        pytest.param(Variant.INTERLEAVED, CLASSES, id="class", marks=pytest.mark.slow),
        *(
            pytest.param(variant, TEXT, id=variant.value, marks=[] if variant is Variant.LATE else [pytest.mark.slow])
            for variant in Variant
        ),
    ],
)
def test_a_gradient_reaches_every_parameter(variant, condition):
    of_text = condition is TEXT
    definition = defined(dataclasses.replace(CONFIG, variant=variant, shared_modulation=of_text), condition)
    params, x_t = random_params(definition), random_latents(3, 2, 2, 2)
    cond = caption_of(2, 5) if of_text else LABEL

    def loss(params):
        return sum(jnp.sum(jnp.square(part)) for part in definition.bind(params).output(x_t, T, cond))

    for name, gradient in jax.jit(jax.grad(loss))(params).items():
        # Keys have a bias that moves all logits of a query alike, and labels a table of which two rows were used.
        if name.endswith("qkv.bias"):
            gradient = gradient[:, ::2]
        elif name.endswith("key_value.bias"):
            gradient = gradient[:, 1]
        elif name == "y_embedder.table":
            gradient = gradient[LABEL]
        assert float(np.abs(gradient).reshape(len(gradient), -1).max(1).min()) > 0, name


def test_a_fresh_network_predicts_zero():
    make = jax.jit(lambda key: params_of(CONFIG.build(2, CLASSES, dtype=jnp.float32, rngs=nnx.Rngs(key))))
    actual = applied(defined(CONFIG))(make(jax.random.key(0)), random_latents(2, 2, 2, 2), T, LABEL)
    np.testing.assert_array_equal(actual, 0.0)


@pytest.mark.parametrize("condition", [CLASSES, TEXT], ids=["class", "text"])
def test_in_half_precision_it_is_the_same_but_for_rounding(condition):
    config = dataclasses.replace(CONFIG, shared_modulation=condition is TEXT)
    half = define(lambda key: config.build(2, condition, dtype=jnp.bfloat16, rngs=nnx.Rngs(key)))
    params, x_t = random_params(half), random_latents(3, 2, 2, 2)
    cond = caption_of(2, 5) if condition is TEXT else LABEL
    actual, expected = (applied(d)(params, x_t, T, cond) for d in (half, defined(config, condition)))
    assert actual.dtype == jnp.float32
    assert 0 < float(np.abs(actual - expected).max()) < 0.05 * float(np.abs(expected).max())


def task_of(variant: Variant) -> Denoise:
    config = LatteConfig(hidden_size=32, depth=2, num_heads=4, patch_size=(1, 1, 1), variant=variant)
    return dataclasses.replace(SMALL_DENOISE, network=config)


@pytest.mark.slow
@ONE_VARIANT
def test_a_step_of_training_lowers_the_loss_that_it_is_of(variant, codec, cached):
    task = task_of(variant)
    definition = define(task.init)
    params = {name: 0.1 * value for name, value in random_params(definition).items()}

    @jax.jit
    @jax.value_and_grad
    def descent(params):
        return task.loss(definition.bind(params), Frozen(codec), cached, jax.random.key(0), jnp.int32(0))[0]

    before, gradient = descent(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in gradient.values()))
    after, _ = descent({name: value - 1e-2 * gradient[name] / norm for name, value in params.items()})
    assert float(after) < float(before)


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    """Loss, gradients and a step of training, with every axis of the mesh split but that of whole clips."""
    experiment = untrained(task_of(Variant.INTERLEAVED), size=(16, 16))
    (actual,) = compare_shardings(experiment, [MeshShape(data=1, fsdp=2, context=2, tensor=2)], num_steps=1)
    assert actual.refused is None
    assert actual.loss <= 1e-6
    assert actual.gradient[1] <= 1e-5, actual.gradient[0]
    assert actual.equal


@ONE_VARIANT
def test_any_mesh_computes_the_same(variant):
    config = dataclasses.replace(CONFIG, variant=variant, depth=2, num_heads=4, shared_modulation=True)
    definition = defined(config, TEXT)
    params, x_t, text = random_params(definition), random_latents(3, 2, 2, 2), caption_of(2, 5)
    network = applied(definition, "output")
    expected = network(params, x_t, T, text)
    mesh = small_mesh(8, fsdp=2, context=2, tensor=2)
    placed = jax.device_put(params, shard_params(definition.axes, definition.shapes, mesh))
    with jax.set_mesh(mesh):
        actual = network(placed, x_t, T, text)
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def test_a_learnt_encoder_of_captions_serves_as_well():
    definition = defined(
        dataclasses.replace(CONFIG, shared_modulation=True), TextCondition(hidden_size=8, depth=1, num_heads=2)
    )
    params, network, x_t = random_params(definition), applied(definition), random_latents(2, 2, 2, 2)
    one, other = (network(params, x_t, T, jnp.asarray(encode_captions([text, "b"], 8))) for text in ("a", "c"))
    assert float(np.abs(one - other)[0].max()) > 1e-3
    np.testing.assert_allclose(one[1], other[1], **ROUNDING)


def test_timesteps_are_levels_of_a_table_of_a_thousand():
    assert [CONFIG.time_of(n) for n in (0, 999)] == [1 / 1000, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"LatteConfig.hidden_size=16: must be a multiple of num_heads=3 and of 4"),
        ({"hidden_size": 18, "num_heads": 2}, r"hidden_size=18: .* of 4"),
        ({"depth": 3}, r"LatteConfig.depth=3: .*variant=interleaved takes an even number"),
        ({"depth": 0, "variant": Variant.FACTORISED}, r"depth=0: must be at least 1"),
        ({"num_heads": 1, "variant": Variant.SPLIT_HEADS}, r"num_heads=1: variant=split_heads takes an even number"),
        ({"position_grid": 0}, r"position_grid=0: must be at least 1; None counts patches"),
    ],
)
def test_what_no_network_is_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_frames_have_sines_then_cosines_and_a_picture_has_no_place():
    np.testing.assert_array_equal(frame_positions(1, 4), np.zeros((1, 4)))
    phase = np.arange(3)[:, None] * [1, 0.01]
    np.testing.assert_allclose(frame_positions(3, 4), np.hstack([np.sin(phase), np.cos(phase)]), rtol=1e-6)
