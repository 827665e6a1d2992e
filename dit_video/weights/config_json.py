"""Validated fields of published config.json files.

A count in a config is a claim: before anything is built of so many, it is compared with the tensors beside it, where
there are some (`BoundedConfig`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# More than any network has.
_MOST = 2**20
_LAYERS = ("num_layers", "num_hidden_layers", "layers_per_block", "num_res_blocks")
# Of what is shown to a network, and of formulas: no tensor has as many of anything.
_OF_NO_TENSOR = dict.fromkeys(("sample_size", "pos_embed_max_size", "image_size"), 2**10)
_OF_NO_TENSOR |= {"video_length": 2**12, "relative_attention_max_distance": _MOST}
# No number of a config is as large; NaN is not smaller.
_LARGEST = 1e30
_SHOWN = 100


class BoundedConfig(dict[str, Any]):
    """A config.json with the tensors beside it: a layer has a tensor at least, and a width is an axis of some tensor.

    Attributes:
        num_tensors: that there are.
        longest: the longest axis of all.
    """

    def __init__(self, config: Mapping[str, Any], num_tensors: int, longest: int):
        super().__init__(config)
        self.num_tensors, self.longest = num_tensors, longest

    @classmethod
    def beside(cls, config: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]) -> "BoundedConfig":
        """A config beside tensors of these shapes."""
        axes = [max(shape, default=1) for shape in shapes]
        return cls(config, len(axes), max(axes, default=1))


def with_fields(config: Mapping[str, Any], fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Other fields, beside the same tensors if `config` has some."""
    if isinstance(config, BoundedConfig):
        return BoundedConfig(fields, config.num_tensors, config.longest)
    return fields


def count_of(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Reads a positive integer from a config.json.

    Raises:
        ValueError: it is none, or it is not there and has no default, or more than any network has, or than the tensors
            beside it; names it.
    """
    value = config.get(name, default)
    if type(value) is not int or value < 1:
        raise refused(name, value, "must be a positive number")
    if name in config:  # A default is no claim of who wrote the config.
        _check_bound(config, name, value)
    return value


def counts_of(config: Mapping[str, Any], name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Reads positive integers from a config.json, one for each level of a network; raises as `count_of`."""
    values = _list_of(config, name, default, lambda value: type(value) is int and value >= 1, "positive numbers")
    for value in values:
        _check_bound(config, name, value)
    return values


def flags_of(config: Mapping[str, Any], name: str, default: Sequence[bool]) -> tuple[bool, ...]:
    """Reads booleans from a config.json, one for each level of a network; raises as `count_of`."""
    return _list_of(config, name, default, lambda value: type(value) is bool, "true and false")


def flag_of(config: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Reads a boolean from a config.json; ValueError where it is none."""
    value = config.get(name, default)
    if type(value) is not bool:
        raise refused(name, value, "must be true or false")
    return value


def number_of(config: Mapping[str, Any], name: str, default: float) -> float:
    """Reads a number from a config.json; ValueError where it is none, or not finite."""
    value = config.get(name, default)
    if not _is_number(value):
        raise refused(name, value, "must be a number")
    return float(value)


def numbers_of(config: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    """Reads `count` numbers from a config.json, one for each channel; raises as `number_of`."""
    values = config.get(name)
    if not isinstance(values, list | tuple) or len(values) != count or not all(map(_is_number, values)):
        raise refused(name, values, f"must be {count} numbers, one for each channel")
    return tuple(map(float, values))


def epsilon_of(config: Mapping[str, Any], name: str, default: float) -> float:
    """Reads what a norm adds to a variance; ValueError where it is not between 0 and 1."""
    value = number_of(config, name, default)
    if not 0 < value < 1:
        raise refused(name, value, "must be a number between 0 and 1")
    return value


def check_layers(config: Mapping[str, Any], number: int, *names: str) -> None:
    """Raises ValueError where these fields together make more layers than there are tensors."""
    if isinstance(config, BoundedConfig) and number > config.num_tensors:
        fields = " and ".join(f"{name}={shortened(config.get(name))}" for name in names)
        raise ValueError(
            f"config.json: {fields}: make {number} layers, and the weights have {config.num_tensors} tensors"
        )


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Checks fields that have the same value in every published network.

    Raises:
        ValueError: names the first that has another.
    """
    for name, value in fixed.items():
        actual = config.get(name, value)
        if (tuple(actual) if isinstance(actual, list) else actual) != value:
            raise refused(name, actual, f"every published network of this class has {shortened(value)}")


def shortened(value: Any) -> str:
    """A stranger's value for a line of text; what is long is cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refused(name: str, value: Any, why: str) -> ValueError:
    """The error for a field of config.json; a value that is long is cut."""
    return ValueError(f"config.json: {name}={shortened(value)}: {why}")


def _check_bound(config: Mapping[str, Any], name: str, value: int) -> None:
    if value > (most := _OF_NO_TENSOR.get(name, _MOST)):
        raise refused(name, value, f"must be at most {most}")
    if not isinstance(config, BoundedConfig) or name in _OF_NO_TENSOR:
        return
    if name in _LAYERS:
        check_layers(config, value, name)
    elif value > config.longest:
        raise refused(name, value, f"no tensor of the weights is longer than {config.longest}")


def _list_of(
    config: Mapping[str, Any], name: str, default: Sequence[Any], fits: Callable[[Any], bool], kind: str
) -> tuple[Any, ...]:
    values = config.get(name, default)
    if not isinstance(values, list | tuple) or not values or not all(map(fits, values)):
        raise refused(name, values, f"must be a list of {kind}")
    check_layers(config, len(values), name)
    return tuple(values)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and -_LARGEST < value < _LARGEST
