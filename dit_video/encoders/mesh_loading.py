"""Loading of pretrained encoder weights from files straight onto a mesh."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from dit_video.distributed.sharding import Uneven, partition_spec
from dit_video.nn.module import Definition
from dit_video.weights import names


def load_params(
    table: names.Table,
    source: names.Source,
    definition: Definition,
    dialect: names.Dialect,
    dtype: DTypeLike,
    mesh: Mesh,
) -> Iterator[tuple[str, Array]]:
    """Loads parameters one at a time, in `dtype`; at most one is in memory in float32.

    Raises:
        NamesMismatch: the tensors are not those of `table`; lists them.
    """
    names.check(table, dialect, source)
    for ours, value in names.read(table, dialect, source):
        try:
            spec = partition_spec(definition.axes[ours], value.shape, mesh)
        except Uneven:
            # Whole on every device: the encoder must not decide how the network it serves is split.
            spec = PartitionSpec()
        yield ours, jax.device_put(value.astype(dtype), NamedSharding(mesh, spec))
