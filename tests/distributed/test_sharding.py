"""One device and eight compute the same, and each holds what the table says."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.data.batch import Batch
from dit_video.distributed.sharding import (
    RULES,
    MeshShape,
    Uneven,
    constrain,
    make_mesh,
    partition_spec,
    place,
    place_whole,
    replicated,
    rows_here,
    shard_frozen,
    shard_params,
)
from dit_video.tasks.task import Task
from dit_video.training.optimizer import EMA, AdamW, Group, Muon
from dit_video.training.step import Program, make_program

MESHES = {
    "data=8": {"data": 8},
    "fsdp=8": {"data": 1, "fsdp": 8},
    "fsdp=4 tensor=2": {"data": 1, "fsdp": 4, "tensor": 2},
}


@pytest.mark.parametrize(
    ("shape", "num_devices", "sizes"),
    [
        (MeshShape(), 8, (8, 1, 1, 1)),
        (MeshShape(), 1, (1, 1, 1, 1)),
        (MeshShape(fsdp=4, tensor=2), 8, (1, 4, 1, 2)),
        (MeshShape(data=2, fsdp=-1), 8, (2, 4, 1, 1)),
        (MeshShape(data=2, fsdp=2, context=1, tensor=2), 8, (2, 2, 1, 2)),
    ],
)
def test_one_axis_takes_the_devices_that_are_left(shape, num_devices, sizes):
    assert shape.resolve(num_devices) == sizes


@pytest.mark.parametrize(
    ("shape", "num_devices", "message"),
    [
        (MeshShape(fsdp=3), 8, "a multiple of 3 devices, 8 are there"),
        (MeshShape(data=2, fsdp=2), 8, "needs 4 devices, 8 are there"),
        (MeshShape(data=16), 8, "needs 16 devices, 8 are there"),
        (MeshShape(fsdp=-1), 8, "at most one may be -1"),
        (MeshShape(data=0), 8, "must be positive"),
        (MeshShape(tensor=-2), 8, "must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, num_devices, message):
    with pytest.raises(ValueError, match=message):
        shape.resolve(num_devices)


def test_the_mesh_is_over_all_devices():
    mesh = make_mesh(MeshShape(fsdp=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("axes", "shape", "parts"),
    [
        (("embed", "mlp"), (8, 6), ("fsdp", "tensor")),
        (("batch", None), (8, 6), (("data", "fsdp"), None)),
        (("layers", "head_dim", "vocab"), (2, 4, 6), (None, None, None)),
        (("tokens",), (4,), (None,)),
    ],
    ids=["each its own", "two mesh axes", "replicated", "mesh axis of size 1"],
)
def test_an_array_is_split_where_its_axes_say(axes, shape, parts):
    mesh = small_mesh(8, data=2, fsdp=2, tensor=2)
    assert partition_spec(axes, shape, mesh) == PartitionSpec(*parts)


def test_an_unknown_axis_is_an_error_and_not_replicated():
    with pytest.raises(KeyError, match="embedding"):
        partition_spec(("embedding",), (8,), small_mesh(8))


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (("embed", "mlp"), (7, 6), r"axis 'embed' of size 7 \(of an array \(7, 6\)\) does not divide over fsdp=2"),
        (("embed", "mlp"), (8, 3), "axis 'mlp' of size 3 .* does not divide over tensor=2"),
        (("batch", "mlp"), (2, 4), "axis 'batch' of size 2 .* does not divide over data=2 x fsdp=2"),
    ],
)
def test_what_does_not_divide_is_an_error_and_not_replicated(axes, shape, message):
    with pytest.raises(Uneven, match=message):
        partition_spec(axes, shape, small_mesh(8, data=2, fsdp=2, tensor=2))


def test_an_error_names_its_parameter():
    shapes = {"x.kernel": jax.ShapeDtypeStruct((9, 4), jnp.float32)}
    with pytest.raises(Uneven, match=r"parameter x\.kernel: axis 'embed' of size 9"):
        shard_params({"x.kernel": ("embed", "mlp")}, shapes, small_mesh(8, data=1, fsdp=8))


def test_a_frozen_network_is_split_where_it_divides(codec):
    mesh = small_mesh(8, data=1, fsdp=8)
    placed = jax.device_put(codec, shard_frozen(codec, mesh))
    parts, is_variable = set(), lambda x: isinstance(x, nnx.Variable)
    for variable, leaf in zip(
        jax.tree.leaves(nnx.state(placed), is_leaf=is_variable), jax.tree.leaves(nnx.state(codec))
    ):
        axes, value = variable.get_metadata().get("axes", ()), variable.get_value()
        splits = axes[-1:] == ("channels_out",) and value.shape[-1] % 8 == 0
        assert value.addressable_shards[0].data.size == value.size // (8 if splits else 1)
        np.testing.assert_array_equal(value, leaf)
        parts.add(splits)
    assert parts == {True, False}


def test_two_dimensions_cannot_share_a_mesh_axis():
    mesh = small_mesh(8, data=1, fsdp=4, tensor=2)
    with pytest.raises(ValueError, match="both 'mlp' and 'heads' map to mesh axis 'tensor'"):
        partition_spec(("mlp", "heads"), (8, 8), mesh)
    # Where that axis has one device only, nothing is shared.
    assert partition_spec(("mlp", "heads"), (8, 8), small_mesh(8, fsdp=8, data=1)) == PartitionSpec(None, None)


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
def test_placing_keeps_the_order_of_rows_and_splits_them_evenly(axes):
    mesh = small_mesh(8, **axes)
    batch = Batch(moments=np.random.default_rng(0).normal(size=(16, 1, 1, 1, 2)).astype(np.float32))
    placed = place(batch, mesh)
    assert placed.video is None
    np.testing.assert_array_equal(placed.moments, batch.moments)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for shard in placed.moments.addressable_shards:
        assert shard.data.shape[0] == 16 // ways
        np.testing.assert_array_equal(shard.data, batch.moments[shard.index])


def test_random_keys_are_placed_as_the_rows_they_are_for():
    mesh, keys = small_mesh(8, data=4, tensor=2), jax.random.split(jax.random.key(0), 8)
    placed = place_whole({"rows": np.arange(8), "keys": keys}, mesh)
    assert placed["keys"].sharding == placed["rows"].sharding
    assert {shard.data.shape for shard in placed["keys"].addressable_shards} == {(2,)}
    np.testing.assert_array_equal(jax.random.key_data(placed["keys"]), jax.random.key_data(keys))


def test_a_process_alone_has_every_row():
    np.testing.assert_array_equal(rows_here(small_mesh(8, data=2, context=4), 6), np.arange(6))


def test_constrain_moves_an_activation_in_a_mesh_and_does_nothing_without():
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", None) is x
    mesh = small_mesh(8, data=4, fsdp=2)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "batch", None))(jax.device_put(x, replicated(mesh)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 2)


def program_of(task: Task, mesh: Mesh) -> Program:
    return make_program(task, AdamW(learning_rate=1e-3), EMA(), num_steps=10, num_microbatches=1, mesh=mesh)


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
def test_every_device_holds_what_the_table_says(axes, denoise):
    """Parameters, their average and both moments of Adam: each in as many parts as its mesh axes have devices."""
    mesh = small_mesh(8, **axes)
    program = program_of(denoise, mesh)
    bytes_of = collections.Counter()
    for leaf in jax.tree.leaves(program.init(0)):
        bytes_of.update({shard.device: shard.data.nbytes for shard in leaf.addressable_shards})
    expected = 3 * 4  # counters: of the step, of Adam and of its schedule
    for name, shape in program.definition.shapes.items():
        ways = 1
        for axis, size in zip(program.definition.axes[name], shape.shape):
            devices = math.prod(mesh.shape[a] for a in RULES[axis]) if axis else 1
            assert size % devices == 0
            ways *= devices
        expected += 4 * math.prod(shape.shape) * 4 // ways
    assert bytes_of == dict.fromkeys(mesh.devices.flat, expected)
    whole = 4 * 4 * program.definition.num_params
    assert expected < whole / 4 if mesh.shape["fsdp"] > 1 else expected > whole


@pytest.mark.parametrize("groups", [(), (Group(prefix="blocks.mlp", learning_rate=1e-4),)], ids=["one", "groups"])
@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["AdamW", "Muon"])
def test_moments_live_where_their_parameters_live(optimizer, groups, denoise):
    mesh = small_mesh(8, data=1, fsdp=4, tensor=2)
    optimizer = dataclasses.replace(optimizer, groups=groups)
    program = make_program(denoise, optimizer, EMA(), num_steps=10, num_microbatches=1, mesh=mesh)
    shapes = program.shapes
    moments = dict.fromkeys(shapes.params, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.opt_state):
        name = next((k.key for k in reversed(path) if getattr(k, "key", None) in shapes.params), None)
        if name is None:
            assert leaf.size <= 3, "counters and coefficients only"
            assert leaf.sharding.is_fully_replicated
            continue
        moments[name] += 1
        assert leaf.shape == shapes.params[name].shape
        assert leaf.sharding == shapes.params[name].sharding
    # Muon keeps one, Adam two.
    assert set(moments.values()) == ({2} if isinstance(optimizer, AdamW) else {1, 2})
