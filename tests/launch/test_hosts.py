"""Hosts of targets: their number, and an error for slices that do not exist."""

import pytest

from dit_video.distributed.targets import parse_target
from dit_video.launch.hosts import Hosts, hosts_of


@pytest.mark.parametrize(
    ("name", "slices", "hosts", "devices"),
    [
        ("v6e:1x1", 1, 1, 1),
        ("v6e:2x2", 1, 1, 4),
        ("v6e:16x16", 1, 64, 4),
        ("v6e:16x16*4", 4, 64, 4),
        ("v5e:4x4", 1, 4, 4),
        ("v5p:2x2x1", 1, 1, 4),
        ("v5p:8x8x8", 1, 128, 4),
        ("tpu7x:1x1x1", 1, 1, 1),
        ("tpu7x:4x4x12*2", 2, 48, 4),
        ("h100:16x8", 1, 16, 8),
        ("b200:1x4", 1, 1, 4),
    ],
)
def test_machines_of_a_target(name, slices, hosts, devices):
    assert hosts_of(parse_target(name)) == Hosts(num_slices=slices, hosts_per_slice=hosts, devices_per_host=devices)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("v6e:3x3", "it has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v6e:16x8", "8x16"),
        ("v5e:32x16", "16x16"),
        ("v5p:16x16", "AxBxC"),
        ("v5p:8x4x4", "A <= B <= C"),
        ("v5p:4x4x6", "multiples of 4"),
        ("v5p:16x16x28", "at most 6144 chips"),
        ("v5p:1x1x1", "2x2x1"),
        ("v6e:2x2*2", "at least two hosts each"),
        ("h100:2x16", "at most 8 GPUs"),
        ("cpu:8", "must be a TPU or a GPU"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(name, remedy):
    with pytest.raises(ValueError, match=remedy.replace("*", r"\*")) as raised:
        hosts_of(parse_target(name))
    assert str(raised.value).startswith(name)
