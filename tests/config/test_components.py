"""Laws of serialisation: what is read is of the type of its field, of a format that is known, and not too deep."""

import dataclasses
import enum
import types
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from dit_video.config import components
from dit_video.config.components import diff, flatten, from_json, of_type, own_classes, record, to_json
from dit_video.config.names import FORMAT
from dit_video.config.overrides import override
from dit_video.config.user_file import ExperimentError, call_file
from dit_video.distributed.sharding import MeshShape


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part | None = Part()
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    named: Mapping[str, Part] | None = None
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[Part, ...] = ()
    colours: tuple[Colour, ...] = ()
    colour: Colour = Colour.RED
    number: float | None = None
    anything: Any = None
    hidden: int = dataclasses.field(default=3, init=False)


OWN = own_classes(Whole(many=(Part(),)))


def test_a_component_of_every_kind_of_field_survives_json():
    whole = Whole(
        part=None,
        parts={"a": Part(2)},
        named={"b": Part(3)},
        pair=(3, 4.0),
        many=(Part(5), Part(6)),
        colours=(Colour.BLUE, Colour.RED),
        colour=Colour.BLUE,
        number=0.5,
        anything=True,
    )
    data = to_json(whole)
    assert (data["colours"], data["pair"], "hidden" in data) == ([2, "red"], [3, 4.0], False)
    assert from_json(record(whole), "it", OWN) == whole
    assert record(whole)["format"] == FORMAT
    assert {f"{__name__}.{kind.__name__}": kind for kind in (Part, Whole)} == OWN
    assert own_classes({"a": (MeshShape(), Part())}) == OWN
    assert own_classes(MeshShape()) == {}


@pytest.mark.parametrize(
    ("value", "hint", "typed"),
    [
        (1, float, 1.0),
        (True, float, None),
        (1, int, 1),
        (1.0, int, None),
        ("None", int | None, "none"),
        (None, int | None, "none"),
        ("None", str, "None"),
        (1, float | str, 1.0),
        ("a", int | str, "a"),
        ([1], int | str, None),
        ("red", Colour, Colour.RED),
        (2, Colour, Colour.BLUE),
        ("green", Colour, None),
        (Colour.RED, Colour, Colour.RED),
        ((1, 2), tuple[int, float], (1, 2.0)),
        ((1, 2, 3), tuple[int, float], None),
        ((1,), tuple[int, float], None),
        ((1, 2, 3), tuple[float, ...], (1.0, 2.0, 3.0)),
        ((), tuple[int, ...], ()),
        ((1, "a"), tuple[int, ...], None),
        ("fast", Literal["fast", "slow"], "fast"),
        ("fasts", Literal["fast", "slow"], None),
        ([1], Any, [1]),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        (5, Mapping[str, int], None),
    ],
)
def test_a_leaf_is_of_its_field_s_type_or_refused(value, hint, typed):
    if typed is None:
        with pytest.raises(ExperimentError, match=r"^config\.x=.*: must be of type "):
            of_type(value, hint, "config.x")
    else:
        actual = of_type(value, hint, "config.x")
        expected = None if typed == "none" else typed
        assert (actual, type(actual)) == (expected, type(expected))
        if isinstance(actual, tuple):
            assert list(map(type, actual)) == list(map(type, expected))


@pytest.mark.parametrize("version", [0, -1, FORMAT + 1, "2", 2.0, True, None])
def test_a_format_that_is_not_known_is_refused(version):
    with pytest.raises(ExperimentError, match=f"it: is of format .*this version of dit_video reads {FORMAT} and "):
        from_json({"format": version, "a": 1}, "it")
    for known in range(1, FORMAT + 1):
        assert from_json({"format": known, "a": 1}, "it") == {"a": 1}


def test_what_is_nested_deeper_than_24_is_refused():
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    assert from_json(nested(24), "it") is not None
    with pytest.raises(ExperimentError, match="nested deeper than 24 components"):
        from_json(nested(25), "it")
    within = {"a": {"a": {"a": 1}}}
    for _ in range(21):
        within = {"a": within}
    assert from_json(within, "it") == within
    with pytest.raises(ExperimentError, match="nested deeper than 24 components"):
        from_json({"a": within}, "it")
    with pytest.raises(ExperimentError, match="nested deeper than 24 components"):
        from_json({"format": 1, "a": nested(800)}, "it")


def test_names_of_classes_are_of_this_package_or_given():
    with pytest.raises(ExperimentError, match="it: class 7 is no name"):
        from_json({"class": 7}, "it")
    with pytest.raises(ExperimentError, match=r"it: class 'os\.system' is not of this package"):
        from_json({"class": "os.system"}, "it")
    with pytest.raises(ExperimentError, match="it: this version of dit_video has no Nothing"):
        from_json({"class": "Nothing"}, "it")
    assert from_json({"format": FORMAT, "class": "MeshShape", "fsdp": 2}, "it") == MeshShape(fsdp=2)
    assert not components._is_ours("dit_videos.x")
    assert components._is_ours("dit_video.x.y")


def test_leaves_have_dotted_paths():
    whole = Whole(parts={"a": Part(2)}, many=(Part(5),))
    leaves = flatten(whole)
    assert leaves["part.size"] == 1
    assert leaves["parts.a.class"] == f"{__name__}.Part"
    assert leaves["many"] == [{"class": f"{__name__}.Part", "size": 5}]
    assert diff(Whole(), Whole(part=Part(7), number=1.0)) == {"number": (None, 1.0), "part.size": (1, 7)}


def test_fields_of_every_kind_are_set_from_words():
    changed = override(
        Whole(parts={"a": Part(2)}, colour=Colour.RED),
        ["--config.parts.a.size=3", "--config.number", "2", "--config.colour=red", "--config.pair=(7,8)"],
    )
    assert changed == Whole(parts={"a": Part(3)}, number=2.0, pair=(7, 8.0))
    whole = Whole()
    assert override(whole, ["--config.part.size=1"]).part is whole.part
    with pytest.raises(ExperimentError, match=r"config\.parts\.b: .* has no such field; it has no fields|it has"):
        override(Whole(), ["--config.parts.b.size=3"])


def test_a_file_is_called_with_its_argument_or_none(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def make(word='none'): return word\n")
    assert call_file("--config", str(path), "make", str) == "none"
    assert call_file("--config", f"{path}:a:b", "make", str) == "a:b"
    path.write_text("def make(word='none'): return 1 / 0\n")
    with pytest.raises(ExperimentError, match=r"--config .*own\.py: ZeroDivisionError: division by zero"):
        call_file("--config", str(path), "make", str)
    (tmp_path / "own.txt").write_text("x")
    with pytest.raises(ExperimentError, match=r"own\.txt: must be a Python file"):
        call_file("--config", str(tmp_path / "own.txt"), "make", str)
    assert isinstance(call_file, types.FunctionType)
