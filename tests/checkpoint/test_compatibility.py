"""Laws of what fits: names, dtypes and shapes are compared, and what differs is named with a remedy."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dit_video.checkpoint.compatibility import OtherNetwork, check_fit, dtype_and_shape, named, some

TREE = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.zeros((), np.int32)}}
SHAPES = {"params": {"['a']": ["float32", [2, 3]], "['b']['c']": ["int32", []]}}


def test_leaves_have_the_names_that_jax_writes():
    assert named(TREE, dtype_and_shape) == SHAPES["params"]
    assert dtype_and_shape(jax.ShapeDtypeStruct((4,), "bfloat16")) == ["bfloat16", [4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"['a']": ["float32", [3, 2]]},
            r"\['a'\] \['float32', \[3, 2\]\] there, \['float32', \[2, 3\]\] here",
        ),
        ({"['a']": ["bfloat16", [2, 3]]}, r"params has \['a'\] \['bfloat16', \[2, 3\]\] there"),
        ({"['d']": ["int32", []]}, r"params has \['d'\] \['int32', \[\]\] there, nothing here"),
        ({"['a']": None}, r"params has \['a'\] only here there, \['float32', \[2, 3\]\] here"),
    ],
)
def test_what_differs_is_another_network(changes, message):
    shapes = {name: shape for name, shape in (SHAPES["params"] | changes).items() if shape is not None}
    metadata = {"shapes": {"params": shapes}, "digests": {}}
    with pytest.raises(OtherNetwork, match=message):
        check_fit({"params": TREE}, metadata, Path("run/1"))


def test_what_fits_is_no_other_network_and_names_alone_are_compared_without_shapes():
    check_fit({"params": TREE}, {"shapes": SHAPES, "digests": {}}, Path("run/1"))
    digests = {"params": dict.fromkeys(SHAPES["params"], 7)}
    check_fit({"params": TREE}, {"digests": digests}, Path("run/1"))
    with pytest.raises(OtherNetwork, match="run/1 holds another network or optimizer: params has"):
        check_fit({"params": TREE | {"d": np.zeros(2)}}, {"digests": digests}, Path("run/1"))


def test_three_names_are_shown_and_the_rest_counted():
    assert [some("abcdef"[:count]) for count in (0, 1, 3)] == ["", "a", "a, b, c"]
    assert some("abcd") == "a, b, c and 1 more"
    assert some("abcdef") == "a, b, c and 3 more"
