"""Laws of reading a checkpoint in portions: every array once, no portion larger than it may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.checkpoint import orbax, reader, slices, writer
from dit_video.checkpoint.integrity import _num_bytes
from dit_video.checkpoint.reader import _by_name, _portions, array_name
from dit_video.checkpoint.slices import _pieces, _smaller


@pytest.mark.parametrize(
    ("sizes", "portions"),
    [
        ([10], [[0]]),
        ([10, 10, 10], [[0], [1], [2]]),
        ([4, 6, 10, 1, 2], [[0, 1], [2], [3, 4]]),
        ([4, 7, 3], [[0], [1, 2]]),
        ([25, 1, 9], [[0], [1, 2]]),
        ([3, 3, 3, 3], [[0, 1, 2], [3]]),
    ],
)
def test_arrays_are_read_in_portions_that_fit(monkeypatch, sizes, portions):
    monkeypatch.setattr(reader, "_PORTION", 40)
    leaves = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes]
    read = [[i for i, target in enumerate(portion) if target is not ...] for portion in _portions(leaves)]
    assert read == portions
    for portion in _portions(leaves):
        assert [target.shape for target in portion if target is not ...]
        assert len(portion) == len(sizes)


def test_bytes_and_names_of_arrays():
    assert _num_bytes(jax.ShapeDtypeStruct((3, 5), jnp.bfloat16)) == 30
    assert _num_bytes(jax.ShapeDtypeStruct((), jnp.float32)) == 4
    assert array_name("['a']['b c'].mu[3]") == ("a", "b c", "mu", "3")
    assert set(_by_name({"a": 1, "b": (2, {"c": 3})})) == {("a",), ("b", "0"), ("b", "1", "c")}


def test_sizes_and_pauses_are_what_they_are_said_to_be():
    assert (slices._PIECE, slices._PENDING) == (4 * 1024**2, 8 * 1024**2)
    assert reader._PORTION == 256 * 1024**2
    assert (writer.TIMEOUT, writer._LEAST_SLICE, writer._PATIENCE) == (20 * 60, 1024**2, 2)
    assert [pause / 30 for pause in writer.RETRY_PAUSES] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 5), (3, 5)),
        ((1024, 1024), (1024, 1024)),  # exactly a piece
        ((1024, 1025), (1024, 513)),
        ((4096, 1024), (1024, 1024)),
        ((2**20 + 1,), (2**19 + 1,)),
        ((), ()),
    ],
)
def test_a_piece_has_at_most_four_mebibytes(shape, expected):
    assert _smaller(shape) == expected
    assert np.prod(expected) * 4 <= 2**22


def test_pieces_are_the_whole_each_at_its_place():
    value = np.arange(35, dtype=np.float32).reshape(5, 7)
    whole = np.full((3, 5, 7), -1, np.float32)
    for start, piece in _pieces(value, 2, (1, 2, 3)):
        whole[tuple(slice(s, s + n) for s, n in zip(start, piece.shape))] += piece + 1
        assert piece.flags.c_contiguous
        assert all(n <= most for n, most in zip(piece.shape, (1, 2, 3)))
    np.testing.assert_array_equal(whole[2], value)
    assert (whole[:2] == -1).all()
    [(start, piece)] = _pieces(value, None, (5, 7))
    assert start == (0, 0)
    np.testing.assert_array_equal(piece, value)


def test_of_an_error_the_first_line_is_shown_up_to_300_characters():
    assert orbax.first_line(KeyError("a\nb")) == r"KeyError: 'a\nb'"
    assert orbax.first_line(ValueError("first\nsecond")) == "ValueError: first"
    assert orbax.first_line(ValueError("x" * 301)) == f"ValueError: {'x' * 300}"
