"""FLOPs of a program, counted on its jaxpr: exact for any network, and no device is touched.

XLA's own cost analysis counts the body of a scan once and is not available before compilation. Counting on the
jaxpr multiplies scans by their length and sees matrix products and convolutions, which are all that model FLOPs
conventionally mean (a multiply and an add are two).
"""

import math
from collections.abc import Callable
from typing import Any

import jax

# Dense peak of one device in FLOP/s at bfloat16, from the vendors' data sheets. Without an entry no MFU is shown.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def count_flops(function: Callable, *args: Any) -> int:
    """FLOPs of `function(*args)`; arguments may be abstract (`jax.ShapeDtypeStruct`)."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def peak_flops(device_kind: str) -> float | None:
    """Peak of a device by the longest known prefix of its kind; None where it is not known."""
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


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
