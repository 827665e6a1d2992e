"""The check of kernels, policies and steps on a device, here at tiny sizes."""

import json

import pytest

from tools import on_device


@pytest.mark.slow
def test_without_an_accelerator_it_checks_everything_at_tiny_sizes(tmp_path, capsys):
    out = tmp_path / "on_device.json"
    assert on_device.main(["--tiny", f"--out={out}"]) == 0
    assert "says nothing of an accelerator" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert all(one["passes"] for one in found["attention"] + found["policies"])
    assert {one["remat"] for one in found["policies"]} == {"none", "dots", "full", "offload"}
    assert [one["seconds"] > 0 for one in found["steps"]] == [True]
