"""Source code of configuration: evaluated, it is the value that it was written of, bit for bit."""

import dataclasses
import enum
import importlib
import inspect
import json
import math
import random
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import dit_video
from dit_video.config.components import to_json
from dit_video.config.names import MODULES, PUBLIC
from dit_video.config.source_code import source_of
from dit_video.config.user_file import ExperimentError
from dit_video.dit.dit import DiTConfig
from dit_video.dit.latte import LatteConfig
from dit_video.vae.video_vae import VideoVAEConfig

KINDS = [getattr(importlib.import_module(module), name) for name, module in MODULES.items()]
TEXTS = ("a", "two words", 'a "quoted" one', "tab\tand\nline", "back\\slash", "\u00fcber", "\x1b[0m")
NUMBERS = (0.0, 1.0, 0.1, 1e-12, 3e300, 1 / 3, 0.999)


class Misfit(Exception):
    """No value of such a type was drawn."""


def drawn(rng: random.Random, hint: Any, depth: int) -> Any:
    """A random value of a type, with components of this package in it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return drawn(rng, rng.choice(arguments), depth)
    if origin is tuple:
        kinds = arguments[:1] * rng.randrange(4) if arguments[-1] is Ellipsis else arguments
        return tuple(drawn(rng, kind, depth) for kind in kinds)
    if origin is not None and issubclass(origin, Mapping):
        return {rng.choice(TEXTS): drawn(rng, arguments[1], depth) for _ in range(rng.randrange(3))}
    if hint is types.NoneType:
        return None
    if hint in (bool, int, float, str):
        return rng.choice({bool: (True, False), int: (1, 2, 4, 8, 16), float: NUMBERS, str: TEXTS}[hint])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return rng.choice(list(hint))
    if not isinstance(hint, type) or depth > 5:
        raise Misfit
    return component(rng, rng.choice([kind for kind in KINDS if hint in kind.__mro__] or [None]), depth + 1)


def component(rng: random.Random, kind: type | None, depth: int = 0) -> Any:
    """A random component; fields keep their default at times."""
    if kind is None or inspect.isabstract(kind):
        raise Misfit
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and (needed or rng.random() < 0.3):
            values[field.name] = drawn(rng, hints[field.name], depth)
    try:
        return kind(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise Misfit from error


def many(rng: random.Random, kind: type) -> list[Any]:
    made = []
    for _ in range(12):
        try:
            made.append(component(rng, kind))
        except Misfit:
            continue
    return made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_written_of_random_trees_makes_them_again(kind):
    for value in many(random.Random(kind.__name__), kind):
        for indent in (0, 4, 90):
            text, names = source_of(value, indent=indent)
            again = eval(f"({text})", {name: getattr(dit_video, name) for name in names})
            assert json.dumps(to_json(again)) == json.dumps(to_json(value)), text
            assert set(names) <= set(PUBLIC)


def test_most_kinds_of_components_were_drawn():
    of_each = [len(many(random.Random(kind.__name__), kind)) for kind in KINDS]
    assert sum(number > 0 for number in of_each) > 0.9 * len(KINDS), dict(zip(map(str, KINDS), of_each))


def test_a_class_of_one_s_own_is_refused_with_what_to_do():
    @dataclasses.dataclass(frozen=True)
    class Mine:
        size: int = 1

    with pytest.raises(ExperimentError, match=r"Mine: is a class of one.s own.*copy the experiment file"):
        source_of({"mine": Mine()})


@pytest.mark.parametrize(
    "given",
    [
        {"hidden_size": 16, "depth": 2, "num_heads": 2, "kind": DiTConfig},
        {"hidden_size": 16, "depth": 2, "num_heads": 2, "kind": LatteConfig},
        {"kind": VideoVAEConfig},
    ],
    ids=lambda given: given["kind"].__name__,
)
def test_every_default_is_named_beside_it_however_many_lines_that_takes(given):
    kind = given.pop("kind")
    value = kind(**given)
    lines = source_of(value).text.splitlines()[1 + len(given) : -1]
    assert len(lines) > 1
    assert max(map(len, lines)) <= 120
    named = " ".join(line.strip().lstrip("# ") for line in lines).removeprefix("as by default: ")
    fields = [field.name for field in dataclasses.fields(value) if field.name not in given]
    assert named == ", ".join(f"{name}={source_of(getattr(value, name)).text}" for name in fields)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.1, 1e300])
def test_numbers_that_are_not_finite_are_written_as_code_too(value):
    np.testing.assert_equal(eval(source_of({"a": value}).text), {"a": value})
    assert ("float(" in source_of(value).text) == (not math.isfinite(value))
