"""Text as a condition: what reaches the video, what does not, and that devices and padding change nothing."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toys import small_mesh

from dit_video.arrays import Text
from dit_video.data.batch import Batch
from dit_video.data.captions import BEGIN, encode_captions
from dit_video.distributed.sharding import place, shard_params
from dit_video.dit.condition import TextCondition
from dit_video.dit.dit import Block, DiT, DiTConfig
from dit_video.nn.module import Params, define, params_of
from dit_video.nn.positions import patch_angles
from dit_video.tasks.latent_diffusion import Frozen

CONFIG = DiTConfig(hidden_size=32, depth=2, num_heads=4, patch_size=(1, 1, 1), shared_modulation=True)
CONDITION = TextCondition(hidden_size=16, depth=2, num_heads=2, drop_rate=0.0)
T = jnp.full((2, 1), 0.5)
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def build(key: jax.Array) -> DiT:
    return DiT(CONFIG, 4, CONDITION, rngs=nnx.Rngs(key))


DEFINITION = define(build)


@jax.jit
def apply(params: Params, x_t, caption) -> jax.Array:
    return DEFINITION.bind(params)(x_t, T, caption)


def predict(params: Params, x_t, captions: list[str], num_bytes: int = 16) -> jax.Array:
    return apply(params, x_t, jnp.asarray(encode_captions(captions, num_bytes)))


@pytest.fixture(scope="module")
def params() -> Params:
    """No parameter is zero: a fresh DiT is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    fresh = jax.jit(lambda key: params_of(build(key)))(jax.random.key(0))
    return {n: p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for n, p in sorted(fresh.items())}


@pytest.fixture(scope="module")
def x_t() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 2, 2, 3, 4))


def test_text_reaches_every_token_and_stays_in_its_clip(params, x_t):
    one, other = (predict(params, x_t, [text, "down"]) for text in ("up", "ur"))
    assert (np.abs(one[0] - other[0]).max(axis=-1) > 1e-4).all()
    np.testing.assert_array_equal(one[1], other[1])


def test_order_of_bytes_matters(params, x_t):
    assert not np.allclose(predict(params, x_t, ["on", "on"]), predict(params, x_t, ["no", "no"]), atol=1e-3)


def test_padding_changes_nothing(params, x_t):
    captions = ["", "a seven"]
    np.testing.assert_allclose(predict(params, x_t, captions, 40), predict(params, x_t, captions, 8), **ROUNDING)


def test_a_fresh_block_with_text_is_the_identity():
    block = jax.jit(lambda key: Block(CONFIG, 16, dtype=jnp.float32, rngs=nnx.Rngs(key)))(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    x, vectors = jax.random.normal(keys[0], (1, 8, 32)), [jnp.zeros((1, 2, 32))] * 6
    text = Text(jax.random.normal(keys[1], (1, 5, 16)), jnp.array([3]), jnp.zeros((1, 16)))
    angles = patch_angles((2, 2, 2), (1, 1, 1), 8)
    np.testing.assert_array_equal(jax.jit(lambda b, *args: b(*args))(block, x, vectors, angles, text), x)


def test_a_network_with_text_has_what_one_without_has_and_more():
    without = define(lambda key: DiT(CONFIG, 4, None, rngs=nnx.Rngs(key))).shapes
    more = {name: shape for name, shape in DEFINITION.shapes.items() if name not in without}
    assert without.items() <= DEFINITION.shapes.items()
    assert {name.rpartition(".")[0].split(".")[-1] for name in more} >= {"text_encoder", "query", "key_value"}
    assert all(name.startswith(("text_encoder.", "blocks.cross_attention.")) for name in more)


class Differentiated(NamedTuple):
    prediction: np.ndarray
    gradient: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def on_one_and_on_eight(params, x_t) -> list[Differentiated]:
    """With tokens of video and of text over two devices each, and heads and parameters too."""
    t, caption = np.float32([[0.3], [0.8]]), encode_captions(["ab", "ba"], 8)

    def loss(params, x_t, t, caption):
        prediction = DEFINITION.bind(params)(x_t, t, caption)
        return jnp.square(prediction).sum(), prediction

    found = []
    for mesh in (small_mesh(), small_mesh(8, data=1, fsdp=2, context=2, tensor=2)):
        placed = jax.device_put(params, shard_params(DEFINITION.axes, DEFINITION.shapes, mesh))
        with jax.set_mesh(mesh):
            made = jax.jit(jax.grad(loss, has_aux=True))(placed, *place((x_t, t, caption), mesh))
        gradient, prediction = jax.device_get(made)
        found.append(Differentiated(prediction, gradient))
    return found


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(on_one_and_on_eight):
    one, eight = on_one_and_on_eight
    np.testing.assert_allclose(eight.prediction, one.prediction, **ROUNDING)
    for name, gradient in one.gradient.items():
        assert np.linalg.norm(eight.gradient[name] - gradient) < 1e-4 * np.linalg.norm(gradient), name


def test_nothing_is_learnt_from_padding(on_one_and_on_eight):
    """And every other parameter learns."""
    gradient = on_one_and_on_eight[0].gradient
    assert {name for name, g in gradient.items() if not np.any(g)} == set()
    seen = np.flatnonzero(np.any(gradient["text_encoder.table"], axis=1))
    np.testing.assert_array_equal(seen, [ord("a"), ord("b"), BEGIN])


@pytest.mark.slow
def test_a_caption_is_learnt(denoise, codec):
    """Clips that differ in nothing but what their captions say: the network comes to draw what it is told."""
    task = dataclasses.replace(denoise, network=CONFIG, condition=CONDITION)
    up_or_down = np.arange(8) % 2
    captions = encode_captions([("it goes up", "it goes down")[i] for i in up_or_down], 16)
    moments = np.zeros((8, 2, 2, 2, 8), np.float32)
    moments[..., :4] = (2 * up_or_down - 1)[:, None, None, None, None]
    moments[..., 4:] = -20.0
    rule, definition = optax.adam(1e-2), define(task.init)

    def loss(params: Params, caption, number) -> jax.Array:
        batch = Batch(moments=moments, signals={"caption": caption})
        return task.loss(definition.bind(params), Frozen(codec), batch, jax.random.key(number), number)[0]

    @jax.jit
    def train(key: jax.Array) -> jax.Array:
        def step(carry, number):
            params, state = carry
            updates, state = rule.update(jax.grad(loss)(params, captions, number), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = params_of(task.init(key))
        (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), jnp.arange(60))
        return jax.lax.map(lambda told: loss(params, told, jnp.int32(60)), np.stack([captions, captions[::-1]]))

    believed, doubted = train(jax.random.key(0))
    assert float(believed) < 0.2 * float(doubted)
