"""Sharding: the device mesh, one table of rules from logical axes to mesh axes, and arrays placed by it.

Networks name *logical* axes ("embed", "heads", "batch"); only this file knows what mesh axis each one is. What
used to be called pjit is `jax.jit` on arrays that carry a `NamedSharding`: parameters, optimizer state and
batches are placed here, and XLA's partitioner writes the collectives.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

# Slowest to fastest link.
MESH_AXES = ("data", "fsdp", "context", "tensor")

# Logical axis -> mesh axes it is split over. An axis that is not here is an error, never silently replicated.
RULES: Mapping[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    # parameters; devices along `context` have the same rows and other tokens, so they share parameters out as well
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "modulation": (),
    "vocab": (),
    "layers": (),
    "channels_in": (),
    "channels_out": ("fsdp",),
    "data_channels": (),  # as many as pixels, latents or scores have, which nobody chooses for a mesh
}

LogicalAxes = tuple[str | None, ...]
Tree = TypeVar("Tree")
NetworkTree = TypeVar("NetworkTree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Shape of the device mesh (data, fsdp, context, tensor); one axis may be -1 and takes the remaining devices."""

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
    """Makes the mesh over all devices of all processes, or over `devices`, which need not exist here.

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


class Uneven(ValueError):
    """A dimension is not divisible by its mesh axes."""


def partition_spec(axes: LogicalAxes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes.

    Raises:
        KeyError: a logical axis that `RULES` does not have.
        Uneven: a dimension that the mesh axes of its logical axis do not divide.
        ValueError: two dimensions of one array would be split over the same mesh axis.
    """
    parts, taken = [], {}
    for axis, size in zip(axes, shape, strict=True):
        names = () if axis is None else RULES[axis]
        names = tuple(n for n in names if mesh.shape[n] > 1)
        ways = math.prod(mesh.shape[n] for n in names)
        if size % ways:
            over = " x ".join(f"{name}={mesh.shape[name]}" for name in names)
            raise Uneven(
                f"axis {axis!r} of size {size} (of an array {tuple(shape)}) does not divide over {over}: change the "
                f"size, or config.mesh so that {' x '.join(names)} is a divisor of it"
            )
        for name in names:
            if name in taken:
                raise ValueError(f"axes {axes}: both {taken[name]!r} and {axis!r} map to mesh axis {name!r}")
            taken[name] = axis
        parts.append((names if len(names) > 1 else names[0]) if names else None)
    return PartitionSpec(*parts)


def shard_params(
    axes: Mapping[str, LogicalAxes], shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, NamedSharding]:
    """The sharding of every named parameter; errors are those of `partition_spec` and name it."""
    shardings = {}
    for name, shape in shapes.items():
        try:
            shardings[name] = NamedSharding(mesh, partition_spec(axes[name], shape.shape, mesh))
        except ValueError as error:
            raise type(error)(f"parameter {name}: {error}") from error
    return shardings


def shard_frozen(module: NetworkTree, mesh: Mesh) -> NetworkTree:
    """Shardings of frozen networks (codec, encoders), as a tree like the module.

    What does not divide is whole on every device: a small codec must not decide how a large network is split.
    """

    def sharding(variable: nnx.Variable | Array) -> nnx.Variable | NamedSharding:
        if not isinstance(variable, nnx.Variable):
            return replicated(mesh)
        shape = variable.get_value().shape
        axes = tuple(variable.get_metadata().get("axes", (None,) * len(shape)))
        axes = ("layers",) * (len(shape) - len(axes)) + axes
        try:
            spec = partition_spec(axes, shape, mesh)
        except Uneven:
            spec = PartitionSpec()
        return variable.replace(NamedSharding(mesh, spec))

    return jax.tree.map(sharding, module, is_leaf=lambda x: isinstance(x, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


@functools.cache
def rows_here(mesh: Mesh, num_rows: int) -> Int[np.ndarray, "rows"]:
    """Rows of a global batch that this process must load: those of its own devices, in order, each once.

    Processes that differ only along `context` or `tensor` have the same rows.

    Raises:
        ValueError: the mesh does not split so many rows evenly.
    """
    indices = along_batch(mesh).addressable_devices_indices_map((num_rows,)).values()
    rows = np.unique(np.concatenate([np.arange(num_rows)[index] for index in indices]))
    rows.setflags(write=False)  # every step asks for the same ones, and all get this array
    return rows


def place(batch: Tree, mesh: Mesh) -> Tree:
    """Puts this process's rows of a host batch, those of `rows_here`, on the mesh as one global array."""
    sharding = along_batch(mesh)

    def spread(x: np.ndarray) -> Array:
        num_rows = len(x) * batch_ways(mesh) // _ways_here(mesh)
        where = rows_here(mesh, num_rows)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "JAX passes the index of each shard of a sharded array"
            rows = range(*index[0].indices(num_rows))
            first = int(np.searchsorted(where, rows.start))
            return x[first : first + len(rows)]

        return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(lambda x: spread(np.asarray(x)), batch)


def place_whole(batch: Tree, mesh: Mesh) -> Tree:
    """As `place`, where every process has all rows of the batch and places those of its own devices.

    Random keys are rows as well.
    """
    sharding = along_batch(mesh)

    def spread(x: np.ndarray | Array) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def is_key(x: Any) -> bool:
        return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)

    return jax.tree.map(lambda x: spread(x if is_key(x) else np.asarray(x)), batch)


def fetch(x: Array) -> np.ndarray:
    """Gathers a global array whole on the host of every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def batch_ways(mesh: Mesh) -> int:
    """Number of parts that the mesh splits a batch into; the batch size must be a multiple of it."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def _ways_here(mesh: Mesh) -> int:
    """Number of those parts on devices of this process."""
    return len(rows_here(mesh, batch_ways(mesh)))


def even_batch(at_least: int, mesh: Mesh) -> int:
    """The smallest batch size of `at_least` or more that the mesh splits evenly."""
    ways = batch_ways(mesh)
    return -(-at_least // ways) * ways


def constrain(x: Array, *axes: str | None) -> Array:
    """Sharding constraint of an activation inside jit. Outside a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def platform() -> str | None:
    """Platform of the mesh's devices at trace time ("cpu", "gpu", "tpu"); the devices need not exist here.

    None outside a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return None if device is None else _kind_of(device.platform)


def device_kind() -> str:
    """Kind of the mesh's devices at trace time, such as "TPU v5p"; they need not exist here. Empty outside a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return "" if device is None else device.device_kind


def platform_of(mesh: Mesh) -> str:
    """Platform of a mesh's devices: "cpu", "gpu" or "tpu"."""
    return _kind_of(mesh.devices.flat[0].platform)


def _kind_of(name: str) -> str:
    # Devices that are there are of "gpu", those of a topology of "cuda".
    return "gpu" if name == "cuda" else name


def split_over(axis: str) -> str | None:
    """The mesh axis that splits a logical axis in the current mesh; None where it is not split."""
    mesh = jax.sharding.get_abstract_mesh()
    names = [] if mesh.empty else [name for name in RULES[axis] if mesh.shape[name] > 1]
    assert len(names) < 2, f"{axis!r} lies along several mesh axes"
    return names[0] if names else None


def map_parts(
    function: Callable[..., Any], axes: Sequence[LogicalAxes], *, like: tuple[int, ...] | None = None
) -> Callable[..., Any]:
    """shard_map of `function` over arguments with these logical axes; its result is split like
    its first argument, or its several results like the arguments numbered in `like`. Outside a mesh it is `function`
    itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function

    def mapped(*arrays: Array) -> Any:
        specs = tuple(partition_spec(labels, x.shape, mesh) for labels, x in zip(axes, arrays, strict=True))
        out_specs = specs[0] if like is None else tuple(specs[i] for i in like)
        # Pallas kernels do not say along which axes their results vary.
        return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*arrays)

    return mapped
