"""Collectives of hand-written HLO programs, whose traffic is known in closed form."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.distributed.collectives import Collective, read_traffic

MESH = small_mesh(8, data=2, fsdp=4)
ONE_DOMAIN = [0] * 8
# Each half of `data` is a slice of its own.
TWO_DOMAINS = [0] * 4 + [1] * 4
# What each device holds: 2 rows of 64 float32.
LOCAL = 2 * 64 * 4


def ring(axis: str, size: int):
    return lambda x: lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])


def scanned(length: int, body):
    return lambda x: lax.scan(lambda h, _: (body(h), None), x, length=length)[0]


def gathered(x):
    """Gathers rows, and folds them so that the next gather depends on this one."""
    return jnp.tanh(lax.all_gather(x, "fsdp", tiled=True).reshape(4, *x.shape)).sum(0)


def exchanged(x):
    return lax.all_to_all(x.reshape(8, 16), "fsdp", split_axis=0, concat_axis=0, tiled=True).reshape(2, 64)


PROGRAMS = {
    "nothing": (lambda x: 2 * x, []),
    "a sum over one axis": (lambda x: lax.psum(x, "fsdp"), [("all-reduce", ("fsdp",), 1, 2 * LOCAL * 3 // 4, 0)]),
    "a sum over the other": (lambda x: lax.psum(x, "data"), [("all-reduce", ("data",), 1, 0, LOCAL)]),
    "a sum over both": (
        lambda x: lax.psum(x, ("data", "fsdp")),
        [("all-reduce", ("data", "fsdp"), 1, 2 * LOCAL * 6 // 8, 2 * LOCAL // 8)],
    ),
    "a gather": (gathered, [("all-gather", ("fsdp",), 1, 3 * LOCAL, 0)]),
    "gathers in a loop": (scanned(5, gathered), [("all-gather", ("fsdp",), 5, 5 * 3 * LOCAL, 0)]),
    "gathers in a loop in a loop": (
        scanned(3, scanned(5, gathered)),
        [("all-gather", ("fsdp",), 15, 15 * 3 * LOCAL, 0)],
    ),
    "a scatter": (
        lambda x: jnp.tile(lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True), (1, 4)),
        [("reduce-scatter", ("fsdp",), 1, LOCAL * 3 // 4, 0)],
    ),
    "an exchange": (exchanged, [("all-to-all", ("fsdp",), 1, LOCAL * 3 // 4, 0)]),
    "a ring": (ring("fsdp", 4), [("collective-permute", ("fsdp",), 1, LOCAL, 0)]),
    "a ring between slices": (ring("data", 2), [("collective-permute", ("data",), 1, 0, LOCAL)]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_traffic_is_what_was_written(name):
    program, expected = PROGRAMS[name]
    split = PartitionSpec(("data", "fsdp"))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(MESH, split))
    spread = jax.shard_map(program, mesh=MESH, in_specs=split, out_specs=split, check_vma=False)
    text = jax.jit(spread).lower(x).compile().as_text()
    assert text is not None
    actual = read_traffic(text, MESH.shape, TWO_DOMAINS)
    assert actual.collectives == tuple(Collective(*numbers) for numbers in expected)
    assert actual.loops_of_unknown_length == 0
    alone = read_traffic(text, MESH.shape, ONE_DOMAIN)
    assert alone.outer_bytes == 0
    assert alone.inner_bytes == actual.inner_bytes + actual.outer_bytes


def module(groups: str) -> str:
    return f"""
ENTRY %main (x: f32[2,64]) -> f32[8,64] {{
  %x = f32[2,64]{{1,0:T(8,128)}} parameter(0), sharding={{devices=[8,1]<=[8]}}
  ROOT %g = f32[8,64]{{1,0:T(8,128)S(1)}} all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{}", ("data", "fsdp")),
        ("[2,4]<=[8]", ("fsdp",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp",)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", ("data", "fsdp")),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", ("fsdp",)),
        ("mesh['axis_0'=8] {'axis_0':(1)2}", ("data",)),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", ("fsdp",)),
    ],
)
def test_groups_are_read_in_every_spelling(groups, axes):
    (collective,) = read_traffic(module(groups), MESH.shape, ONE_DOMAIN).collectives
    assert collective.axes == axes
    assert collective.inner_bytes == LOCAL * ({("fsdp",): 4, ("data",): 2}.get(axes, 8) - 1)


def test_a_group_of_one_sends_nothing():
    assert read_traffic(module("{{0},{1},{2},{3},{4},{5},{6},{7}}"), MESH.shape, ONE_DOMAIN).collectives == ()


TPU_LOOP = """
%all-reduce-scatter.1 (a: f32[8,16]) -> f32[2,16] {{
  %a = f32[8,16]{{1,0}} parameter(0)
  %r = f32[8,16]{{1,0}} all-reduce(%a), channel_id=1, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, to_apply=%add
  ROOT %s = f32[2,16]{{1,0}} dynamic-slice(%r), dynamic_slice_sizes={{2,16}}
}}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {{
  %p = (s32[]{{:T(128)}}, f32[8,16]{{1,0:T(8,128)}}) parameter(0)
  %h = f32[8,16]{{1,0}} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=0
  %f = f32[2,16]{{1,0}} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[2,16]{{1,0}}, f32[8,16]{{1,0}}) all-gather-start(%f), replica_groups=[2,4]<=[8], dimensions={{0}}
  %done = f32[8,16]{{1,0}} all-gather-done(%start)
  ROOT %t = (s32[]{{:T(128)}}, f32[8,16]{{1,0:T(8,128)}}) tuple(%i, %done)
}}

%condition (p.1: (s32[], f32[8,16])) -> pred[] {{
  %p.1 = (s32[]{{:T(128)}}, f32[8,16]{{1,0:T(8,128)}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %bound = s32[]{{:T(128)}} {bound}
  ROOT %lt = pred[] compare(%i.1, %bound), direction=LT
}}

ENTRY %main (p.2: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {{
  %p.2 = (s32[], f32[8,16]{{1,0}}) parameter(0)
  ROOT %w = (s32[], f32[8,16]{{1,0}}) while(%p.2), condition=%condition, body=%body
}}
"""


def test_a_loop_without_its_length_runs_as_often_as_its_condition_says():
    """So TPU compilers write loops, scatters (a computation named after one, around an all-reduce) and starts."""
    traffic = read_traffic(TPU_LOOP.format(bound="constant(7)"), MESH.shape, ONE_DOMAIN)
    size = 8 * 16 * 4
    assert traffic.collectives == (
        Collective("all-gather", ("fsdp",), 7, 7 * 3 * size // 4, 0),
        Collective("reduce-scatter", ("fsdp",), 7, 7 * 3 * size // 4, 0),
    )
    assert traffic.loops_of_unknown_length == 0


def test_a_loop_whose_length_nobody_knows_is_counted_once_and_said():
    traffic = read_traffic(TPU_LOOP.format(bound="get-tuple-element(%p.1), index=0"), MESH.shape, ONE_DOMAIN)
    assert [c.count for c in traffic.collectives] == [1, 1]
    assert traffic.loops_of_unknown_length == 1


def test_what_hosts_carry_between_slices_is_traffic_between_slices():
    """The gradient of a layer, summed within a slice so that each of four devices holds a quarter, then between two."""
    text = """
ENTRY %main (x: f32[32,8]) -> f32[32,8] {
  %x = f32[32,8]{1,0} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[32,8]{1,0}, u32[], token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[32,8]{1,0}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %done = f32[32,8]{1,0} recv-done(%recv), channel_id=1, is_host_transfer=true
}
"""  # noqa: E501
    traffic = read_traffic(text, MESH.shape, TWO_DOMAINS)
    assert traffic.collectives == (Collective("all-reduce", ("data",), 1, 0, 32 * 8 * 4),)
