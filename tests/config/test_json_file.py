"""Comparisons of settings show what differs, however long the values are."""

import os

import pytest

from dit_video.config import json_file
from dit_video.config.json_file import in_short, other_values, read_object, write_json


@pytest.mark.parametrize(
    ("actual", "expected", "lines"),
    [
        ({"clips": {"num_frames": 17}}, {"clips": {"num_frames": 9}}, ["  clips.num_frames: cache 17, this run 9"]),
        ({"a": [1, 2, 3]}, {"a": [1, 5, 6]}, ["  a[1]: cache 2, this run 5"]),
        ({"a": [1, 2]}, {"a": [1]}, ["  a: cache has 2 values, this run 1"]),
        ({}, {"codec": "x"}, ['  codec: cache null, this run "x"']),
        ({"extra": 1, "same": {"b": [0]}}, {"same": {"b": [0]}}, []),
    ],
)
def test_each_difference_is_one_line_with_its_path(actual, expected, lines):
    assert other_values(actual, expected, "this run") == lines


@pytest.mark.parametrize("place", [0, 1, 59, 60, 500, 998, 999])
def test_long_values_are_cut_around_the_first_difference(place):
    first = "x" * 1000
    second = first[:place] + "y" + first[place + 1 :]
    short = in_short(first, second)
    assert short[0] != short[1]
    assert all(len(text) <= 66 for text in short)


def test_where_long_values_differ_is_in_the_middle_third():
    first = "0123456789" * 20
    assert in_short("a", "b") == ('"a"', '"b"')
    assert in_short("a" * 58, "b" * 58) == (f'"{"a" * 58}"', f'"{"b" * 58}"')
    short = in_short(first, first[:100] + "y" + first[101:])
    # In JSON the place is the 101st; 20 characters of 60 are before it.
    text = f'"{first}"'
    assert short[0] == f"...{text[81:141]}..."
    assert short[1] == f"...{(text[:101] + 'y' + text[102:])[81:141]}..."
    assert in_short("x" * 100, "y" + "x" * 99)[0] == f'"{"x" * 59}...'
    assert in_short("x" * 100, "x" * 99)[0].endswith('x"')
    assert in_short([1, 2], [1, 2]) == ("[1, 2]", "[1, 2]")


@pytest.mark.parametrize(
    ("actual", "expected", "lines"),
    [
        ({"a": "xy"}, {"a": "xz"}, ['  a: cache "xy", this run "xz"']),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, ["  a.c: cache null, this run 1", "  a.b: cache 1, this run null"]),
        ({"a": [1]}, {"a": {"b": 1}}, ['  a: cache [1], this run {"b": 1}']),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 3}, 4]}, ["  a[0].b: cache 1, this run 3"]),
        ({"a": [1, 2]}, {"a": [1, 2]}, []),
    ],
)
def test_settings_within_settings_are_named_by_their_path(actual, expected, lines):
    assert other_values(actual, expected, "this run") == lines


def test_a_file_is_written_whole_and_read_up_to_a_limit(tmp_path, monkeypatch):
    assert json_file.MAX_BYTES == 256 * 1024**2
    path = tmp_path / "deep" / "er" / "a.json"
    write_json(path, {"a": [1]})
    write_json(path, {"a": [1]})  # once more, in a folder that is there
    assert path.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]
    monkeypatch.setattr(json_file, "MAX_BYTES", path.stat().st_size)
    assert read_object(path) == {"a": [1]}
    monkeypatch.setattr(json_file, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"a\.json: 19 bytes, more than the 18 that are read of a JSON file"):
        read_object(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not JSON", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[1]", "holds list, not an object"),
        (b"[" * 100_000, "nested too deep"),
    ],
    ids=["text", "no text", "digits", "list", "nested"],
)
def test_what_is_no_object_is_named_with_its_file(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json: {message}"):
        read_object(tmp_path / "a.json")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json: is a pipe, a socket or a device, not a file"):
        read_object(tmp_path / "a.json")
