"""One device and eight compute the same, and each holds what the table says."""

import collections
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from toys import small_mesh

from dit_video.data.batch import Batch
from dit_video.sharding import RULES, MeshShape, constrain, make_mesh, partition_spec, place, replicated
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
        (("embed", "mlp"), (7, 6), (None, "tensor")),
        (("batch", "mlp"), (2, 3), (None, None)),
        (("tokens",), (4,), (None,)),
    ],
    ids=["each its own", "two mesh axes", "replicated", "odd size", "fewer than devices", "mesh axis of size 1"],
)
def test_an_array_is_split_where_its_axes_say_and_its_sizes_allow(axes, shape, parts):
    mesh = small_mesh(8, data=2, fsdp=2, tensor=2)
    assert partition_spec(axes, shape, mesh) == PartitionSpec(*parts)


def test_an_unknown_axis_is_an_error_and_not_replicated():
    with pytest.raises(KeyError, match="embedding"):
        partition_spec(("embedding",), (8,), small_mesh(8))


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
    held = collections.Counter()
    for leaf in jax.tree.leaves(program.init(0)):
        held.update({shard.device: shard.data.nbytes for shard in leaf.addressable_shards})
    expected = 3 * 4  # counters: of the step, of Adam and of its schedule
    for name, shape in program.definition.shapes.items():
        ways = 1
        for axis, size in zip(program.definition.axes[name], shape.shape):
            devices = math.prod(mesh.shape[a] for a in RULES[axis]) if axis else 1
            ways *= devices if size % devices == 0 else 1
        expected += 4 * math.prod(shape.shape) * 4 // ways
    assert held == dict.fromkeys(mesh.devices.flat, expected)
    whole = 4 * 4 * program.definition.num_params
    assert expected < whole / 4 if mesh.shape["fsdp"] > 1 else expected > whole


class Trained(NamedTuple):
    """Fresh parameters, and of three steps from others: losses and how far each parameter moved. On the host."""

    fresh: dict[str, np.ndarray]
    losses: list[float]
    moves: dict[str, np.ndarray]


def train(task: Task, frozen: nnx.Module | None, batch: Batch, mesh: Mesh) -> Trained:
    program = program_of(task, mesh)
    state = program.init(0)
    fresh = jax.device_get(state.params)
    # Fresh networks have zeros whose gradients are rounding alone, which Adam would scale up to whole steps.
    rng = np.random.default_rng(0)
    params = {n: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype) for n, p in sorted(fresh.items())}
    state = state._replace(params=jax.device_put(params, {n: p.sharding for n, p in state.params.items()}))
    losses, frozen = [], jax.device_put(frozen, replicated(mesh))
    for _ in range(3):
        state, metrics = program.step(state, frozen, place(batch, mesh), 0)
        losses.append(float(metrics["loss"]))
    return Trained(fresh, losses, {name: np.asarray(p) - params[name] for name, p in state.params.items()})


@pytest.fixture(scope="module")
def one_device(denoise, codec, cached):
    return train(denoise, codec, cached, small_mesh())


def assert_trained_alike(one: Trained, other: Trained) -> None:
    for name, value in one.fresh.items():
        # Compiled for another mesh, the same formula may differ in its last bit.
        np.testing.assert_allclose(other.fresh[name], value, atol=1e-6, rtol=0, err_msg=f"fresh {name}")
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
    for name, move in one.moves.items():
        # Sums in another order. Adam divides by the gradient's size, so single numbers whose gradient is nearly
        # nothing may go elsewhere; a parameter as a whole does not.
        assert np.linalg.norm(other.moves[name] - move) < 5e-3 * np.linalg.norm(move), name


@pytest.mark.parametrize("axes", [MESHES["data=8"], MESHES["fsdp=4 tensor=2"]], ids=["data=8", "fsdp=4 tensor=2"])
def test_a_dit_trains_alike_on_one_device_and_on_eight(axes, one_device, denoise, codec, cached):
    assert_trained_alike(one_device, train(denoise, codec, cached, small_mesh(8, **axes)))


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


def test_a_vae_trains_alike_on_one_device_and_on_eight(autoencode, clips):
    one = train(autoencode, None, clips, small_mesh())
    assert_trained_alike(one, train(autoencode, None, clips, small_mesh(8, data=2, fsdp=4)))
