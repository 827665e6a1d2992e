"""The mesh, one table from logical axes to mesh axes, and placing arrays on devices by it.

Networks name *logical* axes ("embed", "heads", "batch"); only this file knows what mesh axis each one is. What
used to be called pjit is `jax.jit` on arrays that carry a `NamedSharding`: parameters, optimizer state and
batches are placed here, and XLA's partitioner writes the collectives.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

# Slowest to fastest link.
MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes it is split over. An axis that is not here is an error, never silently replicated.
RULES: Mapping[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    # parameters
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": (),
    "layers": (),
    "channels_in": (),
    "channels_out": ("fsdp",),
}

LogicalAxes = tuple[str | None, ...]
Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices along each mesh axis; one axis may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def resolve(self, num_devices: int) -> tuple[int, ...]:
        """The shape on `num_devices` devices, or an error that names what does not fit."""
        sizes = dataclasses.astuple(self)
        if sizes.count(-1) > 1 or any(n == 0 or n < -1 for n in sizes):
            raise ValueError(f"{self}: axes must be positive, and at most one may be -1")
        fixed = math.prod(n for n in sizes if n != -1)
        resolved = tuple(num_devices // fixed if n == -1 else n for n in sizes)
        if math.prod(resolved) != num_devices:
            raise ValueError(
                f"{self} needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, {num_devices} are there: "
                "change config.mesh, or set one axis to -1 to take what is left"
            )
        return resolved


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices of all processes, or over `devices`, which need not be there.

    Slices of TPUs, which only a data-centre network joins, lie along `data`, whose one exchange in a step is of
    gradients.
    """
    devices = jax.devices() if devices is None else devices
    sizes = shape.resolve(len(devices))
    # GPUs come node by node, so the order of MESH_AXES is enough for them.
    num_slices = len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1
    if num_slices == 1:
        arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    if sizes[0] % num_slices:
        raise ValueError(f"{shape}: data={sizes[0]} must be a multiple of the {num_slices} slices; change config.mesh")
    arranged = mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // num_slices, *sizes[1:]),
        (num_slices, *(1 for _ in sizes[1:])),
        devices,
        allow_split_physical_axes=True,
    )
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(axes: LogicalAxes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where an array with these logical axes lives; a dimension its mesh axes do not divide is not split.

    Raises:
        KeyError: a logical axis that `RULES` does not have.
        ValueError: two dimensions of one array would be split over the same mesh axis.
    """
    parts, taken = [], {}
    for axis, size in zip(axes, shape, strict=True):
        names = () if axis is None else RULES[axis]
        names = tuple(n for n in names if mesh.shape[n] > 1)
        if not names or size % math.prod(mesh.shape[n] for n in names):
            parts.append(None)
            continue
        for name in names:
            if name in taken:
                raise ValueError(f"axes {axes}: both {taken[name]!r} and {axis!r} map to mesh axis {name!r}")
            taken[name] = axis
        parts.append(names if len(names) > 1 else names[0])
    return PartitionSpec(*parts)


def shard_params(
    axes: Mapping[str, LogicalAxes], shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, NamedSharding]:
    """The sharding of every named parameter."""
    return {n: NamedSharding(mesh, partition_spec(axes[n], shapes[n].shape, mesh)) for n in shapes}


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Where the rows of a batch live."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def place(batch: Tree, mesh: Mesh) -> Tree:
    """Puts this process's rows of a host batch on the mesh, as one global array split over the batch axes."""
    sharding = along_batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def place_whole(batch: Tree, mesh: Mesh) -> Tree:
    """As `place`, where every process holds all rows of the batch: each puts those of its own devices there."""
    sharding = along_batch(mesh)

    def spread(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(lambda x: spread(np.asarray(x)), batch)


def fetch(x: Array) -> np.ndarray:
    """A global array, whole, on the host of every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch; its rows must be a multiple of this."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def even_batch(wanted: int, mesh: Mesh) -> int:
    """The least batch of at least `wanted` rows that the mesh splits evenly."""
    ways = batch_ways(mesh)
    return -(-wanted // ways) * ways


def constrain(x: Array, *axes: str | None) -> Array:
    """Inside jit: fixes where an activation lives. Outside a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))
