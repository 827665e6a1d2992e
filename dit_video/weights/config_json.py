"""Validated fields of published config.json files."""

from collections.abc import Mapping
from typing import Any

# More than any network has, and few enough that nothing is made of so many before its tensors are looked at.
_MOST = 2**20
_MOST_OF = dict.fromkeys(
    ("num_layers", "num_hidden_layers", "layers_per_block", "num_res_blocks", "sample_size", "pos_embed_max_size"),
    2**10,
)


def count_of(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Reads a positive integer from a config.json.

    Raises:
        ValueError: it is none, or more than any network has, or it is not there and has no default; names it.
    """
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {name}={value!r}: must be a positive number")
    if value > (most := _MOST_OF.get(name, _MOST)):
        raise ValueError(f"config.json: {name}={value}: must be at most {most}")
    return value


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Checks fields that have the same value in every published network.

    Raises:
        ValueError: names the first that has another.
    """
    for name, value in fixed.items():
        actual = config.get(name, value)
        if (tuple(actual) if isinstance(actual, list) else actual) != value:
            raise ValueError(f"config.json: {name}={actual!r}: every published network of this class has {value!r}")
