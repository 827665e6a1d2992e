"""What each mask allows, against definitions token by token, and that whole blocks are hidden only where all is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn.attention_mask import AttentionMask, BlockCausal, Full, Interleaved, Packed, Span, TwoCopy

# Two rows of twelve tokens, three of them padding.
IDS = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 3, 0, 0, 0], [4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]], np.int32)


def block_causal(query: int, key: int, size: int, window: int) -> bool:
    return key // size <= query // size and query // size - key // size < window


def two_copy(query: int, key: int, size: int, num_tokens: int, window: int) -> bool:
    """By the words of section 3 of 2503.09573, with a window."""
    query_block, key_block = query % num_tokens // size, key % num_tokens // size
    near = query_block - key_block < window
    if query < num_tokens and key < num_tokens:
        return query_block == key_block  # block-diagonal
    if query < num_tokens:
        return key_block < query_block and near  # offset block-causal
    return key >= num_tokens and key_block <= query_block and near  # block-causal


def by_frame(token: int, num_places: int, num_frames: int) -> int:
    place, frame = divmod(token, num_frames)
    return frame * num_places + place


# A mask, how many tokens it is for, and what it allows in a row: (row, query, key) -> bool.
DEFINITIONS = {
    "full": (Full(), 7, lambda row, q, k: True),
    "causal": (BlockCausal(1), 7, lambda row, q, k: k <= q),
    "causal in a window": (BlockCausal(1, window=3), 7, lambda row, q, k: q - 3 < k <= q),
    "frames, the last cut off": (BlockCausal(3), 11, lambda row, q, k: block_causal(q, k, 3, 99)),
    "frames in a window": (BlockCausal(3, window=2), 13, lambda row, q, k: block_causal(q, k, 3, 2)),
    "each frame alone": (BlockCausal(4, window=1), 13, lambda row, q, k: q // 4 == k // 4),
    "two copies": (TwoCopy(2, 6), 12, lambda row, q, k: two_copy(q, k, 2, 6, 99)),
    "two copies, the last block cut off": (TwoCopy(3, 7), 14, lambda row, q, k: two_copy(q, k, 3, 7, 99)),
    "two copies in a window": (TwoCopy(2, 7, window=2), 14, lambda row, q, k: two_copy(q, k, 2, 7, 2)),
    "documents": (Packed(IDS), 12, lambda row, q, k: IDS[row, q] == IDS[row, k] > 0),
    "documents in two copies": (
        Packed(IDS[:, [0, 1, 2, 5, 6, 9] * 2], TwoCopy(2, 6)),
        12,
        lambda row, q, k: (
            IDS[row, [0, 1, 2, 5, 6, 9]][q % 6] == IDS[row, [0, 1, 2, 5, 6, 9]][k % 6] > 0 and two_copy(q, k, 2, 6, 99)
        ),
    ),
    "causal frames by place": (
        Interleaved(BlockCausal(3, window=2), num_places=3, num_frames=4),
        12,
        lambda row, q, k: block_causal(by_frame(q, 3, 4), by_frame(k, 3, 4), 3, 2),
    ),
    "two copies by place": (
        Interleaved(TwoCopy(3, 9), num_places=3, num_frames=6),
        18,
        lambda row, q, k: two_copy(by_frame(q, 3, 6), by_frame(k, 3, 6), 3, 9, 99),
    ),
    "documents of frames by place": (
        Packed(IDS, Interleaved(BlockCausal(3), num_places=3, num_frames=4)),
        12,
        lambda row, q, k: IDS[row, q] == IDS[row, k] > 0 and block_causal(by_frame(q, 3, 4), by_frame(k, 3, 4), 3, 99),
    ),
}


def by_loops(name: str) -> np.ndarray:
    """[2 N N]"""
    _, num_tokens, rule = DEFINITIONS[name]
    allowed = np.zeros((2, num_tokens, num_tokens), bool)
    for row, query, key in np.ndindex(*allowed.shape):
        allowed[row, query, key] = rule(row, query, key)
    return allowed


@pytest.mark.parametrize("name", DEFINITIONS)
def test_it_allows_what_its_definition_does_token_by_token(name):
    mask, num_tokens, _ = DEFINITIONS[name]
    mask.check(num_tokens)
    tokens = np.arange(num_tokens)
    expected = by_loops(name)
    np.testing.assert_array_equal(np.broadcast_to(mask.allowed(tokens, tokens), expected.shape), expected)
    # Of indices that only the program knows, and of a mask that is an argument of it.
    actual = jax.jit(lambda mask, q, k: mask.allowed(q, k))(mask, tokens[1:4], tokens[::2])
    np.testing.assert_array_equal(np.broadcast_to(actual, (2, 3, len(tokens[::2]))), expected[:, 1:4, ::2])


@pytest.mark.parametrize("name", DEFINITIONS)
def test_stretches_are_hidden_only_where_every_pair_is(name):
    """And always there, but where documents decide, which the program alone knows."""
    mask, num_tokens, _ = DEFINITIONS[name]
    order = mask.order(num_tokens)
    assert sorted(order) == list(range(num_tokens))
    stretches = [(a, b) for a in range(num_tokens) for b in range(a, num_tokens)]
    allowed = by_loops(name).any(0)[np.ix_(order, order)].astype(int)
    sums = np.pad(allowed.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    first, last = np.transpose(stretches)
    q, k = np.s_[:, None], np.s_[None, :]
    among = (
        sums[last[q] + 1, last[k] + 1]
        - sums[first[q], last[k] + 1]
        - sums[last[q] + 1, first[k]]
        + sums[first[q], first[k]]
    )
    actual = mask.any_allowed(Span(first[q], last[q]), Span(first[k], last[k]))
    assert not ((among > 0) & ~actual).any()
    if not isinstance(mask, Packed):
        np.testing.assert_array_equal(actual, among > 0)


def test_an_empty_stretch_sees_nothing():
    empty, whole = Span(np.array([3]), np.array([2])), Span(np.array([0]), np.array([11]))
    for mask in (Full(), BlockCausal(2), TwoCopy(2, 6)):
        assert mask.any_allowed(whole, whole)
        assert not mask.any_allowed(empty, whole)
        assert not mask.any_allowed(whole, empty)


def test_masks_are_values():
    """Equal if their numbers are, and nothing but a document's numbers is an array."""
    assert BlockCausal(3, window=2) == BlockCausal(3, window=2) != BlockCausal(3)
    assert len({Full(), Full(), TwoCopy(2, 6), TwoCopy(2, 6), Interleaved(BlockCausal(3), 3, 4)}) == 3
    for mask, _, _ in DEFINITIONS.values():
        arrays, structure = jax.tree.flatten(mask)
        assert [x.shape for x in arrays] == ([mask.segment_ids.shape] if isinstance(mask, Packed) else [])
        rebuilt = jax.tree.unflatten(structure, arrays)
        assert dataclasses.asdict(rebuilt).keys() == dataclasses.asdict(mask).keys()
        assert type(rebuilt) is type(mask)


def test_rows_of_a_packed_batch_can_be_mapped_over():
    mask, tokens = Packed(jnp.asarray(IDS), BlockCausal(2)), np.arange(12)
    one_row = jax.vmap(lambda mask: Packed(mask.segment_ids[None], mask.within).allowed(tokens, tokens)[0])
    np.testing.assert_array_equal(one_row(mask), mask.allowed(tokens, tokens))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockCausal(0), r"BlockCausal.block_size=0: must be at least 1"),
        (lambda: BlockCausal(4, window=0), r"BlockCausal.window=0: must be at least 1"),
        (lambda: TwoCopy(2, 0), r"TwoCopy.num_tokens=0: must be at least 1"),
        (lambda: Interleaved(BlockCausal(4), 4, 0), r"Interleaved.num_frames=0: must be at least 1"),
        (lambda: TwoCopy(2, 6).check(6), r"6 tokens under TwoCopy\(.*num_tokens=6.*: there must be two copies"),
        (
            lambda: Interleaved(BlockCausal(4), 4, 2).check(12),
            r"12 tokens under Interleaved\(.*num_places x num_frames",
        ),
        (lambda: Interleaved(TwoCopy(4, 8), 4, 2).check(8), r"8 tokens under TwoCopy"),
        (lambda: Packed(IDS).check(13), r"segment_ids of shape \(2, 12\) for rows of 13 tokens"),
        (lambda: Packed(IDS, TwoCopy(2, 12)).check(12), r"12 tokens under TwoCopy"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_is_abstract():
    with pytest.raises(TypeError):
        AttentionMask()
