"""Streaming checkpoint writer: a checkpoint written slice by slice equals one written at once."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from toys import small_mesh

from dit_video.checkpoint.checkpoints import Checkpoints
from dit_video.checkpoint.integrity import contents
from dit_video.checkpoint.slices import Layout, Slice, digest_slices, save_slices
from dit_video.weights.digest import texts_of

# Of one number, of few, of a layer that is larger than a piece and does not divide into pieces, and of several axes.
SHAPES = {"scale": (), "bias": (3, 5), "large": (2, 1031, 1033), "kernel": (3, 2, 7, 4), "table": (9, 6)}
LAYOUT = Layout(SHAPES, frozenset({"bias", "large", "kernel"}))


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    random = {name: np.asarray(rng.standard_normal(shape, np.float32)) for name, shape in SHAPES.items()}
    return random | {"bias": np.zeros(SHAPES["bias"], np.float32)}


def slices_of(params: dict[str, np.ndarray]) -> list[Slice]:
    stacked = [(name, layer, x) for name in LAYOUT.stacked for layer, x in enumerate(params[name])]
    return stacked + [(name, None, x) for name, x in params.items() if name not in LAYOUT.stacked]


def test_the_digest_of_a_whole_is_the_sum_of_its_parts(params):
    assert digest_slices(slices_of(params), SHAPES) == texts_of({name: jnp.asarray(x) for name, x in params.items()})


def test_a_slice_may_be_a_view_and_of_fewer_bits():
    stored = np.random.default_rng(0).standard_normal((5, 4)).astype(ml_dtypes.bfloat16)
    whole = np.ascontiguousarray(stored.T).astype(np.float32)
    assert digest_slices([("kernel", None, stored.T)], {"kernel": (4, 5)}) == texts_of({"kernel": jnp.asarray(whole)})


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4, "data": 2}], ids=["one device", "eight"])
def test_every_item_reads_back_bit_by_bit(params, axes, tmp_path):
    digests = save_slices(tmp_path, ("params", "ema"), LAYOUT, lambda: slices_of(params), experiment={"task": "none"})
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    with Checkpoints(tmp_path) as checkpoints:
        actual = contents(checkpoints, 0)
        assert (actual.next_batch, actual.experiment, actual.num_arrays) == (0, {"task": "none"}, 2 * len(SHAPES))
        assert actual.items["ema"].num_bytes == 4 * sum(map(math.prod, SHAPES.values()))
        checkpoints.verify(0, lambda number: None)
        saved = checkpoints.metadata()["digests"]
        assert saved["params"] == saved["ema"] == {f"['{name}']": digest for name, digest in digests.items()}
        for ema in (False, True):
            read = checkpoints.restore_params(shapes, small_mesh(math.prod(axes.values()), **axes), ema=ema)
            for name, expected in params.items():
                np.testing.assert_array_equal(read[name], expected, strict=True)


def test_a_folder_that_is_full_says_what_to_do(tmp_path):
    """In a process of its own: in whole runs of the tests the limit did not hold in theirs; why is not known."""
    program = (
        "import pathlib, resource, numpy as np, test_slices as t\n"
        "from dit_video.checkpoint.checkpoints import NotSaved\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "rng = np.random.default_rng(0)\n"
        "params = {name: np.asarray(rng.standard_normal(shape, np.float32)) for name, shape in t.SHAPES.items()}\n"
        "try:\n"
        "    t.save_slices(pathlib.Path('.'), ('params',), t.LAYOUT, lambda: t.slices_of(params), experiment={})\n"
        "except NotSaved as error:\n"
        "    print(error)\n"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"checkpoints/0/params: not written: .*raise the limit .*and try again", done.stdout), done.stderr
