"""A little of tools/fault_bench.py: what it says is silent is, and what it finds is kept where the page has room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.checkpoint.checkpoints import Checkpoints
from tools import flip_bench, reliability_page


def test_a_difference_that_nothing_detects_counts_as_silent(tmp_path):
    """The bench compares with another state than was saved, as if all of it had changed on the way."""
    state = flip_bench.example_state()
    with Checkpoints(tmp_path, experiment={"seed": 3}) as checkpoints:
        checkpoints.save(flip_bench.STEP, state, next_batch=20)
        checkpoints.wait()
        file = next((tmp_path / "checkpoints").rglob("commit_success.txt"))
        assert flip_bench._ending(checkpoints, state, file, lambda data: data) == flip_bench.HARMLESS
        other = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + 1), state)
        assert flip_bench._ending(checkpoints, other, file, lambda data: data) == flip_bench.SILENT


def test_what_is_found_stands_in_its_place_of_the_page_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability_page, "RESULTS", tmp_path / "found.json")
    monkeypatch.setattr(reliability_page, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(
        "# Page\n<!-- a -->\nold\n<!-- end of a -->\nmore\n<!-- b -->\n<!-- end of b -->\n"
    )
    reliability_page.record("a", {"n": 1}, ("n",), [(1,)])
    reliability_page.record("b", {"n": 2}, ("n",), [(2,)])
    assert (tmp_path / "page.md").read_text() == (
        "# Page\n<!-- a -->\n| n |\n|---|\n| 1 |\n<!-- end of a -->\nmore\n"
        "<!-- b -->\n| n |\n|---|\n| 2 |\n<!-- end of b -->\n"
    )
    assert reliability_page.recorded("a") == {"n": 1}
    with pytest.raises(ValueError, match="no place for c"):
        reliability_page.record("c", {}, ("n",), [])
