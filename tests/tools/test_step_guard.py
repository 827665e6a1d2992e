"""Figures of a step that are guarded: those of one small step on a CPU, and the tool for other devices."""

import importlib.util

import pytest

from tools import step_guard


def test_what_grew_is_named_and_what_shrank_is_not():
    before = {"bytes": 1000, "cycles": 1000, "temporaries": 0}
    assert step_guard.grown(before, {"bytes": 1031, "cycles": 900, "temporaries": 0, "new": 5}) == [
        "bytes: 1,000 -> 1,031 (+3.1%)"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [t for t, compiler in step_guard.TARGETS.items() if importlib.util.find_spec(compiler)] or ["none"]
)
def test_no_step_for_an_accelerator_grew(target, monkeypatch):
    """Where its compiler is installed; minutes."""
    monkeypatch.setattr("sys.argv", ["step_guard", "--only", target] if target != "none" else ["step_guard"])
    assert step_guard.main() == 0
