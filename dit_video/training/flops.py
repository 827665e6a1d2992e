"""FLOP counting on the jaxpr of a function: exact for any network, without a device, for MFU.

XLA's own cost analysis counts the body of a scan once and is not available before compilation. Counting on the
jaxpr multiplies scans by their length and sees matrix products and convolutions, which are all that model FLOPs
conventionally mean (a multiply and an add are two).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var

from dit_video.distributed.hardware import chip_of


def count_flops(function: Callable, *args: Any) -> int:
    """FLOPs of `function(*args)`; arguments may be abstract (`jax.ShapeDtypeStruct`)."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def count_dependent_flops(function: Callable, first: Any, *rest: Any) -> int:
    """FLOPs of the operations that depend on `first`: for a loss and its parameters, those with a backward pass."""
    closed = jax.make_jaxpr(function)(first, *rest)
    num = len(jax.tree.leaves(first))
    return _count_dependent(closed.jaxpr, set(closed.jaxpr.invars[:num]))


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where its kind is not known, and then no MFU is shown."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops


def _count(jaxpr: Any) -> int:
    return sum(map(_count_one, jaxpr.eqns))


def _count_one(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in equation.params["branches"])
    repeat = equation.params["length"] if name == "scan" else 1
    return repeat * sum(map(_count, _inner_jaxprs(equation.params)))


def _count_dependent(jaxpr: Any, dependent: set[Any]) -> int:
    """FLOPs of the operations that depend on the variables `dependent`."""
    total = 0
    for equation in jaxpr.eqns:
        # Literals, which depend on nothing, have no hash.
        depends = [isinstance(x, Var) and x in dependent for x in equation.invars]
        if not any(depends):
            continue
        dependent |= set(equation.outvars)
        inner = _inner_jaxprs(equation.params)
        if equation.primitive.name == "jit":
            (called,) = inner
            total += _count_dependent(called, {x for x, counts in zip(called.invars, depends) if counts})
        else:
            total += _count_one(equation)
    return total


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
    """Jaxprs nested in an equation (jit, scan, checkpoint, custom derivatives, while), open form."""
    values = [v for p in params.values() for v in (p if isinstance(p, tuple | list) else [p])]
    return [getattr(v, "jaxpr", v) for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]


def _dot(equation: Any) -> int:
    (contract, _), _ = equation.params["dimension_numbers"]
    left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(output) * math.prod(left[axis] for axis in contract)


def _convolution(equation: Any) -> int:
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    out_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(output) * math.prod(kernel) // out_channels
