"""Split of Flax NNX modules into a static definition and a flat dict of parameters, and back.

A network is split once into a `Definition` (static) and `params`: one flat dict from a dotted name such as
"blocks.attention.qkv.kernel" to an array. Optimizers, checkpoints, digests and exports all speak these names.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

Params = dict[str, Array]
Function = TypeVar("Function", bound=Callable[..., Any])


def recomputed(function: Function) -> Function:
    """`function`, of which the backward pass keeps the arguments alone: no float32 copy of what is half precision."""
    return cast(Function, jax.checkpoint(function, prevent_cse=False))


class Precision(enum.Enum):
    """Compute precision of networks (float32 or bfloat16). Parameters, norms, softmax and losses are always float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.value)


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """Static definition of a network, without its parameters: `bind` makes it callable again.

    Attributes:
        axes: logical axis names of each parameter, for the sharding table and the optimizer; the leading axes that
            stacking layers adds are "layers".
        shapes: shape and dtype of each parameter.
    """

    graph: nnx.GraphDef
    variables: dict[str, nnx.Variable]
    axes: dict[str, tuple[str | None, ...]]
    shapes: dict[str, jax.ShapeDtypeStruct]

    def bind(self, params: Mapping[str, Array]) -> Any:
        """Binds parameters to the definition: the network, of its own class.

        Raises:
            ValueError: naming parameters that are missing or too many.
        """
        if params.keys() != self.shapes.keys():
            missing, surplus = sorted(self.shapes.keys() - params), sorted(params.keys() - self.shapes)
            raise ValueError(f"parameters do not fit the network: {missing=} {surplus=}")
        flat = {_path(name): v.replace(params[name]) for name, v in self.variables.items()}
        return nnx.merge(self.graph, nnx.from_flat_state(flat))

    @property
    def num_params(self) -> int:
        return sum(int(np.prod(s.shape)) for s in self.shapes.values())


def define(build: Callable[[Array], nnx.Module]) -> Definition:
    """Traces `build(key)` abstractly: the definition of its network, without computing or allocating anything."""
    graph, state = nnx.split(nnx.eval_shape(build, jax.eval_shape(lambda: jax.random.key(0))))
    variables = {_name(path): variable for path, variable in nnx.to_flat_state(state)}
    axes, shapes = {}, {}
    for name, variable in variables.items():
        value = variable.get_value()
        shapes[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        labels = tuple(variable.get_metadata().get("axes", (None,) * len(value.shape)))
        axes[name] = ("layers",) * (len(value.shape) - len(labels)) + labels
    return Definition(graph, variables, axes, shapes)


def params_of(module: nnx.Module) -> Params:
    """Flat dict of a network's parameters by dotted name."""
    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(module))}


def _name(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def _path(name: str) -> tuple:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
