"""A little of tools/bench_step.py: both sides train the same network, and nothing is timed where they do not."""

import dataclasses

import numpy as np
import pytest

from dit_video.dit.dit import DiTConfig
from tools import bench_step
from tools.bench_step import Case, Measured, Peer

SMALL = Case(name="small", size=DiTConfig(hidden_size=32, depth=1, num_heads=2), latents=(4, 4, 4), batch_size=2)


@pytest.mark.parametrize("latents", [(1, 8, 8), pytest.param((4, 4, 4), marks=pytest.mark.slow)], ids=str)
def test_steps_that_are_timed_are_of_one_network(latents):
    measured = bench_step.measure(dataclasses.replace(SMALL, latents=latents), Peer(name="diffusers"), 2, half=False)
    assert measured.difference < 1e-4
    assert len(measured.ratios) == 2
    assert min(*measured.ours, *measured.theirs) > 0


def test_another_network_is_not_timed(monkeypatch):
    build = Peer.build

    def other(peer: Peer, case: Case, params: dict[str, np.ndarray]):
        return build(peer, case, {name: 2 * value for name, value in params.items()})

    monkeypatch.setattr(Peer, "build", other)
    with pytest.raises(ValueError, match="small beside diffusers: losses differ by"):
        bench_step.measure(SMALL, Peer(name="diffusers"), 1, half=False)


def test_the_table_has_medians_ratios_and_their_range():
    measured = Measured(
        case=SMALL, peer="a", ours=(1.0, 2.0, 1.0), theirs=(2.0, 2.0, 1.5), difference=2e-7, flops=int(1e12)
    )
    np.testing.assert_allclose(measured.ratios, [2.0, 1.0, 1.5])
    *_, line = bench_step.rows([measured], peak=None)
    assert line == "| small | 4 x 4 x 4 | 2 | a | 1000 ms | 2000 ms | 1.50 | 1.00 to 2.00 | 2e-07 |"
    *_, line = bench_step.rows([measured], peak=4e12)
    assert line.endswith("| 25% | 12% |")
    text = bench_step.page([measured], "command", 3, "machine", None)
    assert "    command\n" in text
    assert "machine\n\n| network |" in text
