import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.config.components import from_json, to_json
from dit_video.dit.condition import ClassCondition
from dit_video.dit.dit import DIT_B, DIT_L, DIT_S, DIT_XL, Block, DiT, DiTConfig
from dit_video.dit.network import Remat
from dit_video.nn.module import Params, define, params_of
from dit_video.nn.norm import rms_normalize
from dit_video.nn.patches import patchify, unpatchify
from dit_video.nn.positions import NTKAware, patch_angles

CONFIG = DiTConfig(hidden_size=32, depth=2, num_heads=2, patch_size=(1, 2, 2))
CONDITION = ClassCondition(num_classes=3)
LABEL = jnp.array([0, 2], jnp.int32)
# The same sums in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def build(config: DiTConfig = CONFIG, **options):
    return lambda key: DiT(config, 4, CONDITION, rngs=nnx.Rngs(key), **options)


DEFINITION = define(build())


@jax.jit
def apply(params: Params, x_t, t, label=LABEL):
    return DEFINITION.bind(params)(x_t, t, label)


@pytest.fixture(scope="module")
def fresh() -> Params:
    return jax.jit(lambda key: params_of(build()(key)))(jax.random.key(0))


@pytest.fixture(scope="module")
def params(fresh) -> Params:
    """No parameter is zero: a fresh DiT is the zero function and obeys any law."""
    rng = np.random.default_rng(0)
    return {n: p + 0.1 * rng.normal(size=p.shape).astype(np.float32) for n, p in sorted(fresh.items())}


@pytest.fixture(scope="module")
def x_t() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 4))


@pytest.mark.parametrize(("config", "millions"), [(DIT_S, 33), (DIT_B, 130), (DIT_L, 458), (DIT_XL, 675)])
def test_sizes_are_the_published_ones(config, millions):
    """Table 1 of 2212.09748: patch size 2, 1000 classes, images."""
    definition = define(lambda key: DiT(config, 4, ClassCondition(num_classes=1000), rngs=nnx.Rngs(key)))
    assert definition.num_params / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_fresh_network_predicts_zero(fresh, x_t):
    prediction = apply(fresh, x_t, jnp.full((2, 1), 0.5))
    assert prediction.shape == x_t.shape
    np.testing.assert_array_equal(prediction, 0.0)


def test_a_fresh_block_is_the_identity():
    block = jax.jit(lambda key: Block(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(key)))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (1, 8, 32))
    angles = patch_angles((2, 2, 2), (1, 1, 1), 16)
    conditioning = jax.random.normal(jax.random.key(2), (1, 2, 32))
    np.testing.assert_array_equal(jax.jit(lambda b, *args: b(*args))(block, x, conditioning, angles), x)


def test_a_level_per_clip_is_the_same_level_in_every_frame(params, x_t):
    t = jnp.array([[0.3], [0.8]])
    per_frame = apply(params, x_t, jnp.repeat(t, 3, axis=1))
    np.testing.assert_allclose(apply(params, x_t, t), per_frame, **ROUNDING)
    assert not np.allclose(
        apply(params, x_t, jnp.array([[0.3, 0.3, 0.9], [0.8, 0.8, 0.8]]))[0], per_frame[0], atol=1e-2
    )


def test_frames_that_share_a_patch_share_the_level_of_its_first(params):
    config = dataclasses.replace(CONFIG, patch_size=(2, 2, 1))
    definition = define(build(config))
    assert definition.shapes.keys() == params.keys()
    network = jax.jit(lambda p, x, t: definition.bind(p)(x, t, LABEL))
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 2, 4))
    first, second = jnp.array([[0.2, 0.2, 0.7, 0.7]] * 2), jnp.array([[0.2, 0.9, 0.7, 0.1]] * 2)
    np.testing.assert_array_equal(network(params, x, first), network(params, x, second))


def test_labels_reach_the_output_and_stay_in_their_clip(params, x_t):
    t = jnp.full((2, 1), 0.5)
    one, other = (apply(params, x_t, t, jnp.array(label, jnp.int32)) for label in ([0, 2], [1, 2]))
    assert float(np.abs(one[0] - other[0]).max()) > 1e-2
    np.testing.assert_array_equal(one[1], other[1])


def test_every_token_sees_every_other(params, x_t):
    t = jnp.full((2, 1), 0.5)
    moved = apply(params, x_t.at[0, 2, 3, 3].add(1.0), t) - apply(params, x_t, t)
    assert (np.abs(moved[0]).max(axis=-1) > 1e-6).all()
    np.testing.assert_array_equal(moved[1], 0.0)


def test_scan_over_depth_is_a_loop_over_layers(params, x_t):
    def by_hand(params, x_t, t):
        network = DEFINITION.bind(params)
        conditioning = network.t_embedder(t) + network.y_embedder(LABEL)[:, None]
        angles = patch_angles((3, 4, 4), (1, 2, 2), 16)
        patches = patchify(x_t, (1, 2, 2))
        x = network.x_embedder(patches.reshape(2, 12, -1))
        for layer in range(CONFIG.depth):
            x = jax.tree.map(lambda p, layer=layer: p[layer], network.blocks)(x, conditioning, angles)
        shift, scale = network.final_modulation(conditioning)
        x = network.final_layer(rms_normalize(x) * (1 + scale) + shift)
        return unpatchify(x.reshape(patches.shape), (1, 2, 2), (3, 4, 4))

    t = jnp.array([[0.3], [0.8]])
    np.testing.assert_allclose(apply(params, x_t, t), jax.jit(by_hand)(params, x_t, t), **ROUNDING)


def gradient(remat: Remat, params: Params, x_t: jax.Array) -> Params:
    definition = define(build(dataclasses.replace(CONFIG, remat=remat)))
    loss = lambda p: jnp.sum(jnp.square(definition.bind(p)(x_t, jnp.full((2, 1), 0.5), LABEL)))  # noqa: E731
    return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def kept(params, x_t) -> Params:
    return gradient(Remat.NOTHING_RECOMPUTED, params, x_t)


@pytest.mark.parametrize("remat", [Remat.DOTS, Remat.FULL, Remat.OFFLOAD])
def test_rematerialisation_changes_no_gradient(remat, params, x_t, kept):
    for name, value in gradient(remat, params, x_t).items():
        scale = float(np.abs(kept[name]).max())
        assert scale > 0
        np.testing.assert_allclose(value, kept[name], atol=1e-5 * scale, err_msg=name)


def test_half_precision_computes_close_to_float32_and_predicts_float32(params, x_t):
    definition = define(build(dtype=jnp.bfloat16))
    assert {shape.dtype for shape in definition.shapes.values()} == {jnp.dtype("float32")}
    t = jnp.full((2, 1), 0.5)
    half, full = jax.jit(lambda p: definition.bind(p)(x_t, t, LABEL))(params), apply(params, x_t, t)
    assert half.dtype == jnp.float32
    # bfloat16 has eight bits.
    assert float(np.abs(half - full).max() / np.abs(full).max()) < 0.1
    assert not np.array_equal(half, full)


def test_a_conditioned_network_asks_for_its_label(params, x_t):
    with pytest.raises(ValueError, match="this network is conditioned: pass `cond`"):
        DEFINITION.bind(params)(x_t, jnp.full((2, 1), 0.5), None)


def test_shared_modulation_is_modulation_by_the_same_kernel_in_every_block(x_t):
    """adaLN-single is adaLN whose blocks differ in their biases alone."""
    shared = define(build(dataclasses.replace(CONFIG, shared_modulation=True)))
    rng = np.random.default_rng(0)
    cond = {n: 0.2 * rng.standard_normal(s.shape, np.float32) for n, s in shared.shapes.items()}
    own = {n: p for n, p in cond.items() if n in DEFINITION.shapes}
    of_all, offsets = "shared_modulation.projection", cond["blocks.modulation.table"]
    own["blocks.modulation.projection.kernel"] = np.stack([cond[f"{of_all}.kernel"]] * CONFIG.depth)
    own["blocks.modulation.projection.bias"] = cond[f"{of_all}.bias"] + offsets
    t = jnp.array([[0.3, 0.3, 0.9], [0.8, 0.8, 0.8]])
    found = jax.jit(lambda p: shared.bind(p)(x_t, t, LABEL))(cond)
    np.testing.assert_allclose(found, apply(own, x_t, t), rtol=1e-3, atol=1e-3 * float(np.abs(found).max()))
    without = cond | {"blocks.modulation.table": 0 * offsets}
    assert not np.allclose(jax.jit(lambda p: shared.bind(p)(x_t, t, LABEL))(without), found, rtol=0.1)


def test_shared_modulation_saves_a_third_of_a_large_network():
    shared = dataclasses.replace(DIT_XL, shared_modulation=True)
    sizes = [define(lambda key, c=c: DiT(c, 4, None, rngs=nnx.Rngs(key))).num_params for c in (shared, DIT_XL)]
    assert sizes[0] / sizes[1] == pytest.approx(2 / 3, rel=0.03)


def test_heads_must_be_even_and_divide_the_width():
    for num_heads in (5, 32):
        with pytest.raises(ValueError, match=f"hidden_size=32: must be num_heads={num_heads} times an even"):
            dataclasses.replace(CONFIG, num_heads=num_heads)


def test_extrapolation_moves_larger_clips_alone():
    x = jnp.zeros((1, 4, 32))
    for trained, same in (((1, 4, 4), True), ((1, 2, 4), False)):
        config = dataclasses.replace(CONFIG, extrapolation=NTKAware(trained=trained))
        here, as_they_are = (c.with_positions(x, (1, 4, 4))[1] for c in (config, CONFIG))
        assert bool(jnp.array_equal(here, as_they_are)) == same


def test_a_record_of_before_extrapolation_has_positions_as_they_are():
    record = to_json(CONFIG)
    del record["extrapolation"]
    assert from_json(record, "config") == CONFIG
    assert CONFIG.extrapolation is None
