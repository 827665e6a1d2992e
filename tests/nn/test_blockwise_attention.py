"""Attention under a mask is the softmax of scaled products over what the mask allows, however it is computed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_attention_mask import DEFINITIONS, IDS, by_loops
from toys import small_mesh

from dit_video.distributed.collectives import read_traffic
from dit_video.distributed.sharding import map_parts
from dit_video.nn.attention import Attention
from dit_video.nn.attention_mask import AttentionMask, BlockCausal, Full, Interleaved, Packed, TwoCopy
from dit_video.nn.axial_attention import temporal_attention
from dit_video.nn.blockwise_attention import attend_in_blocks
from dit_video.nn.softmax_attention import self_attention

# Float32 sums of a few dozen numbers of size 1.
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}
HEADS = ("batch", "tokens", "heads", "head_dim")


def numbers(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def random_heads(num_tokens: int, num_heads: int = 2, rows: int = 2) -> list[jax.Array]:
    """Queries, keys, values, and the gradient of what comes out."""
    return [numbers(seed, rows, num_tokens, num_heads, 4) for seed in range(4)]


def by_definition(allowed: np.ndarray, *heads: jax.Array) -> list[np.ndarray]:
    """The result, and the gradients of queries, keys and values, in float64; `allowed` is [B N N]."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in heads)
    scale = q.shape[-1] ** -0.5
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) * scale) * allowed[:, None]
    p = weights / np.where(allowed.any(-1)[:, None], weights.sum(-1), 1)[..., None]
    d_p = np.einsum("bqhd,bkhd->bhqk", d_out, v)
    d_logits = p * (d_p - (p * d_p).sum(-1, keepdims=True)) * scale
    return [
        np.einsum("bhqk,bkhd->bqhd", p, v),
        np.einsum("bhqk,bkhd->bqhd", d_logits, k),
        np.einsum("bhqk,bqhd->bkhd", d_logits, q),
        np.einsum("bhqk,bqhd->bkhd", p, d_out),
    ]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(attend, mask: AttentionMask, *heads: jax.Array) -> list[jax.Array]:
    *qkv, d_out = heads
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask), *qkv)
    return [out, *pull(d_out)]


def equal(actual, expected) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, **ROUNDING)


IN_FOURS = functools.partial(attend_in_blocks, block_size=4)
forward = jax.jit(self_attention)


@pytest.mark.parametrize("attend", [self_attention, IN_FOURS], ids=["whole", "in blocks"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_it_is_softmax_over_what_the_mask_allows_in_value_and_gradient(name, attend):
    mask, num_tokens, _ = DEFINITIONS[name]
    heads = random_heads(num_tokens)
    equal(value_and_gradients(attend, mask, *heads), by_definition(by_loops(name), *heads))


def test_full_is_what_there_was_without_a_mask_bit_for_bit():
    q, k, v, _ = random_heads(9)
    expected = jax.jit(jax.nn.dot_product_attention)(q, k, v)
    np.testing.assert_array_equal(forward(q, k, v), expected)
    np.testing.assert_array_equal(forward(q, k, v, Full()), expected)


def test_masks_that_hide_nothing_are_full():
    heads = random_heads(9)
    expected = value_and_gradients(self_attention, Full(), *heads)
    for mask in (BlockCausal(9), BlockCausal(20, window=1), Packed(jnp.full((2, 9), 5, jnp.int32))):
        equal(value_and_gradients(self_attention, mask, *heads), expected)
        equal(value_and_gradients(IN_FOURS, mask, *heads), expected)


def test_blocks_of_one_token_are_causal_attention():
    q, k, v, _ = random_heads(9)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    equal([forward(q, k, v, BlockCausal(1))], [expected])


def test_a_window_of_all_blocks_is_none():
    heads = random_heads(10)
    for attend in (self_attention, IN_FOURS):
        narrow, wide = (value_and_gradients(attend, BlockCausal(3, window=w), *heads) for w in (4, None))
        for one, other in zip(narrow, wide):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("attend", [self_attention, IN_FOURS], ids=["whole", "in blocks"])
def test_what_comes_later_changes_nothing_before_bit_for_bit(attend):
    """Values, and the gradients of what was before."""
    mask, heads = BlockCausal(3), random_heads(11)
    later = [x.at[:, 6:].set(numbers(9, *x[:, 6:].shape)) for x in heads]
    # Gradients come from later blocks, too; here these give none.
    before = [*heads[:3], heads[3].at[:, 6:].set(0)]
    changed = [*later[:3], before[3]]
    for one, other in zip(value_and_gradients(attend, mask, *before), value_and_gradients(attend, mask, *changed)):
        np.testing.assert_array_equal(one[:, :6], other[:, :6])
    out = [value_and_gradients(attend, mask, *x)[0] for x in (heads, later)]
    assert float(jnp.abs(out[0][:, 6:] - out[1][:, 6:]).min()) > 0


def test_the_order_of_documents_is_of_no_account():
    ids, heads = np.repeat([[1, 2, 3]], [4, 2, 5], axis=1), random_heads(11, rows=1)
    order = np.concatenate([np.arange(6, 11), np.arange(4), np.arange(4, 6)])
    plain = value_and_gradients(self_attention, Packed(ids), *heads)
    moved = value_and_gradients(self_attention, Packed(ids[:, order]), *(x[:, order] for x in heads))
    equal(moved, [x[:, order] for x in plain])
    alone = value_and_gradients(self_attention, Full(), *(x[:, 4:6] for x in heads))
    equal([x[:, 4:6] for x in plain], alone)


@pytest.mark.parametrize("window", [None, 2])
def test_two_copies_are_as_many_passes_as_there_are_blocks(window):
    """Clean tokens as if they were alone; a noisy block as if it came after the clean ones before it."""
    num_tokens, size = 11, 3
    *qkv, _ = random_heads(2 * num_tokens)
    out = jax.jit(IN_FOURS)(*qkv, TwoCopy(size, num_tokens, window))
    clean = [x[:, num_tokens:] for x in qkv]
    equal([out[:, num_tokens:]], [forward(*clean, BlockCausal(size, window))])
    for first in range(0, num_tokens, size):
        block = slice(first, min(first + size, num_tokens))
        pass_of_block = [jnp.concatenate([c[:, :first], x[:, block]], axis=1) for x, c in zip(qkv, clean)]
        equal([out[:, block]], [forward(*pass_of_block, BlockCausal(size, window))[:, first:]])


@pytest.mark.parametrize("attend", [self_attention, IN_FOURS], ids=["whole", "in blocks"])
def test_what_sees_nothing_gives_zero_and_takes_no_gradient(attend):
    heads = random_heads(12)
    actual = value_and_gradients(attend, Packed(IDS), *heads)
    for x in actual:
        np.testing.assert_array_equal(x[IDS == 0], 0)
        assert jnp.isfinite(x).all()
    for x in value_and_gradients(attend, Packed(np.zeros_like(IDS)), *heads):
        np.testing.assert_array_equal(x, 0)


def test_large_logits_neither_overflow_nor_leak():
    """Hidden keys may have any logits, and those that are seen may be far from zero."""
    q, k, v, _ = random_heads(8)
    k = k.at[:, 4:].multiply(1e4)
    out = jax.jit(IN_FOURS)(1e3 * q, k, v, BlockCausal(2))
    expected = jax.nn.dot_product_attention(1e3 * q[:, :4], k[:, :4], v[:, :4], mask=by_loops_of_twos())
    np.testing.assert_allclose(out[:, :4], expected, **ROUNDING)
    assert jnp.isfinite(out).all()


def by_loops_of_twos() -> np.ndarray:
    return np.kron(np.tri(2), np.ones((2, 2))).astype(bool)[None, None]


def test_half_precision_rounds_as_it_does_without_a_mask():
    """Logits, softmax and sums are float32; what enters and leaves is bfloat16."""
    heads = random_heads(12)
    exact = by_definition(np.ones((2, 12, 12), bool), *(x.astype(jnp.bfloat16) for x in heads))
    errors = {}
    for mask in (Full(), BlockCausal(12)):
        actual = value_and_gradients(self_attention, mask, *(x.astype(jnp.bfloat16) for x in heads))
        assert {x.dtype for x in actual} == {jnp.dtype(jnp.bfloat16)}
        errors[mask] = np.array([np.abs(np.asarray(x, np.float64) - e).mean() for x, e in zip(actual, exact)])
    assert (errors[BlockCausal(12)] < 1.2 * errors[Full()] + 1e-4).all()


# Heads, devices along the axes, and whether keys travel.
MESHES = {
    "ulysses over 8": (8, {"context": 8}, False),
    "ring over 8": (2, {"context": 8}, True),
    "ring over 2, heads over 2, rows over 2": (6, {"data": 2, "context": 2, "tensor": 2}, True),
    "ulysses over 2, rows over 4": (2, {"fsdp": 4, "context": 2}, False),
    "rows over 8": (1, {"data": 8}, False),
    "heads over 8": (8, {"tensor": 8}, False),
}
DOCUMENTS = np.sort(np.random.default_rng(0).integers(0, 4, (8, 48)), axis=1).astype(np.int32)
SPLIT = {
    "frames in a window": BlockCausal(5, window=4),
    "documents in two copies": Packed(np.tile(DOCUMENTS[:, :24], 2), TwoCopy(5, 24)),
    "frames by place": Interleaved(BlockCausal(16), num_places=16, num_frames=3),
}


@pytest.mark.parametrize(("num_heads", "axes", "travels"), MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("mask", SPLIT.values(), ids=SPLIT)
def test_devices_share_it_out_without_another_result(mask, num_heads, axes, travels):
    heads = random_heads(48, num_heads, rows=8)
    expected = value_and_gradients(self_attention, mask, *heads)
    mesh = small_mesh(8, **({"data": 1} | axes))
    with jax.set_mesh(mesh):
        step = value_and_gradients.lower(self_attention, mask, *heads).compile()
        equal(step(mask, *heads), expected)
    assert ("collective-permute" in step.as_text()) == travels


@pytest.mark.parametrize("mask", SPLIT.values(), ids=SPLIT)
def test_keys_travel_in_blocks(mask):
    """Parts of twelve tokens in blocks of at most five, with a ring of four devices."""

    def attend(q, k, v, mask: AttentionMask):
        arrays, structure = jax.tree.flatten(mask)
        part = lambda q, k, v, *arrays: attend_in_blocks(  # noqa: E731
            q, k, v, jax.tree.unflatten(structure, arrays), "context", 5
        )
        return map_parts(part, [*[HEADS] * 3, *[("batch", None)] * len(arrays)])(q, k, v, *arrays)

    heads = random_heads(48, rows=8)
    expected = value_and_gradients(self_attention, mask, *heads)
    with jax.set_mesh(small_mesh(8, data=2, context=4)):
        equal(value_and_gradients(attend, mask, *heads), expected)


def test_a_mask_adds_no_exchange():
    mesh = small_mesh(8, data=1, context=8)
    counts = []
    for mask in (Full(), BlockCausal(5), SPLIT["documents in two copies"]):
        heads = random_heads(48, 2, rows=8)
        with jax.set_mesh(mesh):
            text = value_and_gradients.lower(self_attention, mask, *heads).compile().as_text()
        counts.append({c.kind: c.count for c in read_traffic(text, mesh.shape, [0] * 8).collectives})
    assert counts[0]["collective-permute"] == counts[1]["collective-permute"] == counts[2]["collective-permute"]


@pytest.mark.parametrize("name", ["causal", "two copies", "documents"])
def test_memory_grows_with_the_sequence_and_not_with_its_square(name):
    def temporaries(num_tokens: int) -> int:
        masks = {
            "causal": BlockCausal(1),
            "two copies": TwoCopy(16, num_tokens // 2),
            "documents": Packed(jnp.ones((1, num_tokens), jnp.int32)),
        }
        heads = [jax.ShapeDtypeStruct((1, num_tokens, 1, 8), jnp.float32)] * 4
        compiled = value_and_gradients.lower(self_attention, masks[name], *heads).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(1024), temporaries(4096)
    assert large < 4.2 * small
    assert large < 4096 * 4096 * 4 / 16, "the logits of all pairs"


@pytest.mark.parametrize(
    ("mask", "num_pairs"),
    [
        (BlockCausal(1), 8 * 9 // 2),
        (BlockCausal(4, window=2), 8 + 7),
        (TwoCopy(4, 16), 4 + 4 * 3 // 2 + 4 * 5 // 2),
        (Interleaved(BlockCausal(4), num_places=4, num_frames=8), 8 * 9 // 2),
        (Packed(np.ones((2, 32), np.int32)), 8 * 8),
    ],
    ids=str,
)
def test_hidden_blocks_are_not_visited(mask, num_pairs):
    """Of 8 x 8 pairs of blocks of four tokens, forward and backward."""
    text = str(jax.make_jaxpr(functools.partial(value_and_gradients, IN_FOURS))(mask, *random_heads(32)))
    assert [int(length) for length in re.findall(r"\blength=(\d+)", text)] == [num_pairs] * 2


def test_the_layer_takes_a_mask_and_so_does_what_is_recomputed():
    layer = jax.jit(lambda key: Attention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(key)))(jax.random.key(0))
    x, mask = numbers(0, 2, 12, 8), Packed(jnp.asarray(IDS), BlockCausal(3))

    def total(layer, x, mask):
        return jnp.sum(jnp.sin(layer(x, None, mask=mask)))

    plain = jax.jit(jax.value_and_grad(total, argnums=1))(layer, x, mask)
    again = jax.jit(jax.value_and_grad(jax.checkpoint(total), argnums=1))(layer, x, mask)
    call = jax.jit(lambda layer, *args: layer(*args))
    expected = jax.jit(lambda layer, x, mask: layer(x, None, functools.partial(self_attention, mask=mask)))(
        layer, x, mask
    )
    for one, other in zip(plain, again):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(plain[0], jnp.sum(jnp.sin(expected)), rtol=1e-6)
    assert float(jnp.abs(call(layer, x, None) - expected).max()) > 1e-3


def test_a_mask_is_never_left_out_in_silence():
    layer = Attention(8, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    over_time = functools.partial(temporal_attention, num_frames=3)
    with pytest.raises(TypeError, match="mask"):
        layer(numbers(0, 2, 12, 8), None, over_time, BlockCausal(4))
    with pytest.raises(ValueError, match="12 tokens under TwoCopy"):
        layer(numbers(0, 2, 12, 8), None, mask=TwoCopy(2, 12))
