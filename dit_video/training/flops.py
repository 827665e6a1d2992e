"""FLOPs of a program, counted on its jaxpr: exact for any network, and no device is touched.

XLA's own cost analysis counts the body of a scan once and is not available before compilation. Counting on the
jaxpr multiplies scans by their length and sees matrix products and convolutions, which are all that model FLOPs
conventionally mean (a multiply and an add are two).
"""

import math
from collections.abc import Callable
from typing import Any

import jax

from dit_video.hardware import chip_of


def count_flops(function: Callable, *args: Any) -> int:
    """FLOPs of `function(*args)`; arguments may be abstract (`jax.ShapeDtypeStruct`)."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where its kind is not known, and then no MFU is shown."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            repeat = equation.params["length"] if name == "scan" else 1
            total += repeat * sum(_count(inner) for inner in _inner_jaxprs(equation.params))
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
