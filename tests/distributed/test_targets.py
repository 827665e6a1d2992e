"""Compilation targets: parsing of their names, and descriptions of devices for compilers."""

import dataclasses
import sys

import pytest

from dit_video.distributed.hardware import CHIPS
from dit_video.distributed.targets import GPU_MEMORY_VARIABLE, GPUS, TPUS, Target, describe_gpu, parse_target


@pytest.mark.parametrize(
    ("text", "chip", "size", "num_slices"),
    [
        ("cpu:256", None, (256,), 1),
        ("v6e:16x16", "v6e", (16, 16), 1),
        ("v6e:16x16*4", "v6e", (16, 16), 4),
        ("v5e:4x4", "v5e", (4, 4), 1),
        ("v5p:8x8x4", "v5p", (8, 8, 4), 1),
        ("tpu7x:4x4x4", "tpu7x", (4, 4, 4), 1),
        ("h100:16x8", "h100", (16, 8), 1),
    ],
)
def test_targets_are_read(text, chip, size, num_slices):
    expected = Target(
        name=text,
        chip=None if chip is None else CHIPS[chip],
        family=text.partition(":")[0],
        size=size,
        num_slices=num_slices,
    )
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("v9:4x4", "v9 is not known; give one such as v6e:16x16"),
        ("", "a target is not known"),
        ("cpu", "must be cpu:N"),
        ("cpu:0", "must be cpu:N"),
        ("cpu:8*2", "must be cpu:N"),
        ("v6e:256", "must be v6e:ROWSxCOLUMNS"),
        ("v6e:4x4*", "with \\*SLICES for several"),
        ("v6e:4x4*0", "with \\*SLICES for several"),
        ("h100:128", "must be h100:NODESxDEVICES"),
        ("h100:16x8*2", "must be h100:NODESxDEVICES"),
    ],
)
def test_a_wrong_target_is_named_with_the_remedy(text, named):
    with pytest.raises(ValueError, match=named):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "module", "extra", "num_devices"),
    [
        ("v6e:4x4*2", "libtpu", "plan-tpu", 32),
        ("tpu7x:2x2x1", "libtpu", "plan-tpu", 8),
        ("h100:2x8", "jax_cuda13_plugin", "plan-gpu", 16),
    ],
)
def test_without_a_compiler_the_message_says_what_to_install(monkeypatch, text, module, extra, num_devices):
    monkeypatch.setitem(sys.modules, module, None)  # as on a machine where it is not installed
    expected = rf"pip install .*\[{extra}\].* --target=cpu:{num_devices} is an estimate"
    with pytest.raises(ValueError, match=expected):
        parse_target(text).devices()


def test_fake_devices_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="cpu:9: this process was started with 8 fake devices"):
        parse_target("cpu:9").devices()


def test_every_family_has_a_chip_and_every_gpu_a_description():
    for family in (*TPUS, *GPUS):
        assert family in CHIPS
    for family in GPUS:
        assert CHIPS[family].kind in describe_gpu(CHIPS[family])


@pytest.mark.parametrize(
    ("text", "larger"),
    [
        ("v5e:4x4", "v5e:4x8"),
        ("v6e:8x16", "v6e:16x16"),
        ("v6e:16x16", "v6e:16x16*2"),
        ("v5p:4x4x8", "v5p:4x8x8"),
        ("h100:2x8", "h100:4x8"),
    ],
)
def test_a_larger_target_has_twice_the_devices(text, larger):
    doubled = parse_target(text).doubled()
    assert doubled is not None
    assert dataclasses.replace(parse_target(larger), name=doubled.name) == doubled
    assert doubled.num_devices == 2 * parse_target(text).num_devices


def test_fake_devices_have_no_larger_target():
    assert parse_target("cpu:8").doubled() is None


def test_a_gpu_gives_what_jax_takes_of_it(monkeypatch):
    whole = CHIPS["h100"].hbm
    monkeypatch.delenv(GPU_MEMORY_VARIABLE, raising=False)
    assert parse_target("h100:1x8").memory == int(0.75 * whole)
    monkeypatch.setenv(GPU_MEMORY_VARIABLE, "0.9")
    assert parse_target("h100:1x8").memory == int(0.9 * whole)
    assert parse_target("v6e:2x2").memory == CHIPS["v6e"].hbm
    assert parse_target("cpu:8").memory is None


@pytest.mark.parametrize(("text", "size"), [("h100:16x8", 8), ("v6e:4x4*2", 16), ("v5p:2x2x2", 8)])
def test_links_join_the_devices_of_a_slice_or_node(text, size):
    assert parse_target(text).domain_size == size
