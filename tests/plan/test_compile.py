"""Plans: memory as the compiler counts it, collectives, FLOPs, roofline; errors of programs that do not fit."""

import dataclasses
import math

import jax
import pytest
from toys import untrained

from dit_video.config.overrides import override
from dit_video.distributed.collectives import Traffic
from dit_video.distributed.hardware import Chip
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.distributed.targets import parse_target
from dit_video.dit.network import Remat
from dit_video.experiment import Experiment
from dit_video.nn.module import define
from dit_video.plan.compile import MemoryPart, Plan, plan, refused
from dit_video.plan.programs import gradient_flops, recomputed_flops
from dit_video.run import workload
from dit_video.training.optimizer import EMA, AdamW
from dit_video.training.step import make_program

MESHES = {
    "data=8": MeshShape(),
    "fsdp=8": MeshShape(data=1, fsdp=8),
    "data=2 fsdp=2 tensor=2": MeshShape(data=2, fsdp=2, tensor=2),
}
# Of round numbers, and with less memory than anything needs.
TINY = Chip(kind="tiny", hbm=1000, flops=1e9, hbm_bandwidth=1e9, links=1e9, network=None)


@pytest.fixture(scope="module")
def experiment(denoise) -> Experiment:
    return untrained(denoise)


@pytest.fixture(scope="module")
def plans(experiment) -> dict[str, Plan]:
    """A plan for every mesh, on devices on which nothing fits."""
    target = dataclasses.replace(parse_target("cpu:8"), chip=TINY)
    shaped = {name: dataclasses.replace(experiment, mesh=shape) for name, shape in MESHES.items()}
    return {name: plan(one, target, num_places=10) for name, one in shaped.items()}


def bytes_of(one: Plan) -> dict[str, int]:
    return {part.name: part.bytes for part in one.memory.parts}


def traffic(one: Plan) -> Traffic:
    assert one.traffic is not None
    return one.traffic


@pytest.mark.parametrize("name", MESHES)
def test_bytes_of_state_are_those_of_the_compilers_arguments(experiment, plans, name):
    """To the byte: on a CPU nothing is padded."""
    assert plans[name].memory.padding == 0
    assert plans[name].mesh == dict(zip(("data", "fsdp", "context", "tensor"), MESHES[name].resolve(8)))


@pytest.mark.parametrize("name", MESHES)
def test_bytes_of_state_are_those_that_devices_hold_in_training(experiment, plans, name):
    mesh = make_mesh(MESHES[name])
    state = make_program(experiment.task, AdamW(), EMA(), num_steps=1000, num_microbatches=1, mesh=mesh).init(0)
    state_bytes = sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards)
    sizes = bytes_of(plans[name])
    assert 8 * sum(sizes[part] for part in ("parameters", "their average (EMA)", "optimizer")) == state_bytes


def test_what_nothing_splits_shows(experiment, plans):
    """Under data parallelism that is all; under fsdp what stays is less than an eighth of a parameter in number."""
    params = define(experiment.task.init).shapes
    total = sum(math.prod(shape.shape) * 4 for shape in params.values())
    whole = {name: one.memory.parts[0] for name, one in plans.items()}
    assert whole["data=8"].whole == whole["data=8"].bytes == total
    split = whole["fsdp=8"]
    assert split.bytes == split.whole + (total - split.whole) / 8
    assert 0 < split.whole < total / 10
    assert plans["data=8"].memory.parts[3].whole == bytes_of(plans["data=8"])["frozen parts"]


def test_gradients_are_summed_over_data_and_parameters_gathered_over_fsdp(experiment, plans):
    kinds = {name: {(c.axes, c.kind) for c in traffic(one).collectives} for name, one in plans.items()}
    assert kinds["data=8"] == {(("data",), "all-reduce")}
    assert (("fsdp",), "all-gather") in kinds["fsdp=8"]
    # Every gradient is summed over all devices: each receives 7/8 of it twice, and a few metrics.
    gradients = 2 * 7 * bytes_of(plans["data=8"])["parameters"] // 8
    assert gradients <= traffic(plans["data=8"]).inner_bytes < 1.05 * gradients


def test_flops_clips_and_tokens_are_those_that_training_counts(experiment, plans):
    work = workload.measure_work(experiment)
    for one in plans.values():
        assert (one.flops, one.clips, one.tokens) == (work.flops, work.clips, work.tokens)


@pytest.mark.parametrize("name", MESHES)
def test_a_roofline_is_what_was_counted_over_what_a_chip_can(plans, name):
    one = plans[name]
    seconds = {bound.name: bound.seconds for bound in one.bounds}
    assert seconds["compute"] == one.flops / 8 / TINY.flops
    assert seconds["links"] == traffic(one).inner_bytes / TINY.links
    # Read once and written once, all but the batch and the frozen parts; metrics are what is written besides.
    sizes = bytes_of(one)
    once = sizes["batch"] + sizes["frozen parts"]
    assert seconds["memory"] == pytest.approx((2 * sum(sizes.values()) - once) / TINY.hbm_bandwidth, rel=0.01)
    assert one.binding is not None
    assert one.binding.seconds == max(seconds.values())
    assert one.mfu == seconds["compute"] / one.binding.seconds
    assert one.device_hours() == pytest.approx(one.binding.seconds * 1000 * 8 / 3600)


def test_what_fits_exceeds_nothing(plans):
    large = dataclasses.replace(plans["data=8"].memory, hbm=2**40)
    assert large.excess == 0
    assert large.fits
    assert plans["data=8"].memory.excess == plans["data=8"].memory.peak - TINY.hbm > 0
    unknown = dataclasses.replace(large, hbm=None)
    assert (unknown.excess, unknown.fits) == (0, False)


def test_what_is_computed_twice_is_a_forward_pass_at_most(experiment):
    """Full rematerialisation runs every block again."""
    full = override(experiment, ["--config.task.network.remat=full"])
    forward = workload.step_flops(experiment) // 3
    assert recomputed_flops(experiment) == 0
    assert 0.5 * forward < recomputed_flops(full) <= forward
    assert gradient_flops(full, Remat.DOTS) < gradient_flops(full, Remat.FULL) == gradient_flops(full, Remat.OFFLOAD)


def test_what_is_computed_twice_takes_time_and_is_no_use(plans):
    one = plans["data=8"]
    assert one.recomputed_flops == 0
    assert one.binding is not None
    slower = dataclasses.replace(one, recomputed_flops=one.flops, bounds=one.bounds[:1])
    assert slower.mfu == pytest.approx(0.5)
    assert one.seconds_in_turn == sum(bound.seconds for bound in one.bounds) > one.binding.seconds


def test_rows_that_the_mesh_does_not_divide_are_named(experiment):
    odd = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=12))
    with pytest.raises(ValueError, match=r"config.data.batch_size=12: must be a multiple of data x fsdp = 8 on cpu:8"):
        plan(odd, parse_target("cpu:8"))


@pytest.mark.parametrize(
    ("message", "temporaries", "peak", "limit"),
    [
        ("the total memory required for HLO temporaries (25.45G) exceeds available HBM (15.75G).", 25.45, 26.45, 15.75),
        ("Ran out of memory in memory space hbm. Used 20.92G of 15.48G hbm. Exceeded", 19.92, 20.92, 15.48),
    ],
)
def test_what_a_compiler_says_that_gave_up_is_understood(message, temporaries, peak, limit):
    """In the words of libtpu, which names either the temporaries or all that a program holds."""
    memory = refused(
        jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}"), (MemoryPart("parameters", 2**30, 0),)
    )
    actual = (memory.temporaries, memory.peak, memory.hbm)
    assert [n / 2**30 for n in actual] == pytest.approx([temporaries, peak, limit])
    assert memory.excess == memory.peak - memory.hbm > 0


def test_another_failure_of_a_compiler_is_not_hidden():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        refused(jax.errors.JaxRuntimeError("INTERNAL: something else"), ())


def test_fake_devices_have_the_memory_that_is_given():
    assert parse_target("cpu:1").memory is None
    assert dataclasses.replace(parse_target("cpu:1"), fake_memory=1).memory == 1


def test_the_places_that_cost_most_are_lines_of_this_package(plans):
    places = plans["data=8"].costliest
    shares = [place.share for place in places]
    assert len(places) == 10
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1
    assert any(place.source.startswith("nn/") for place in places)
