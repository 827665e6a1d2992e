"""Tables of strangers come back cell by cell, or are refused by file and line; never cut or guessed."""

import csv
import datetime
import gzip
import io
import json
import random

import pyarrow
import pytest
from pyarrow import parquet

from dit_video.ingest import label_table
from dit_video.ingest.label_table import Description, LabelTable
from dit_video.ingest.tables import MAX_CELL, read_rows

CELLS = "a, b;\tc\"d'\n ä日 \u2028x"
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "with mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "gzip": lambda text: gzip.compress(text.encode()),
}


def rows(path) -> list[dict]:
    return [dict(row) for _, row in read_rows(path)[1]]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_any_legal_table_comes_back(tmp_path, encoding, delimiter):
    """Random cells, written with any quoting that is legal."""
    rng = random.Random(0)
    columns = ["key", "text", "more"]
    table = [["".join(rng.choices(CELLS, k=rng.randrange(12))).strip() or "x" for _ in columns] for _ in range(200)]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([columns, *table])
        (tmp_path / "t.csv").write_bytes(ENCODINGS[encoding](text.getvalue()))
        assert rows(tmp_path / "t.csv") == [dict(zip(columns, row)) for row in table]


def test_parquet_comes_back(tmp_path):
    """As JSON lines with the same cells would; what is no text is not read where it is not asked for."""
    cells = {"key": ["a", "b", None], "n": [1, 2.5, None], "list": [[1], None, []], "flag": [True, None, False]}
    day = [datetime.date(2020, 1, 2), None, None]
    table = pyarrow.table({**cells, "day": day, "video": [b"\0", b"", None]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    columns, found = read_rows(tmp_path / "t.parquet", ["key", "n", "list", "flag", "day"])
    assert columns == [*cells, "day", "video"]
    assert [dict(row) for _, row in found] == [
        {"key": "a", "n": "1.0", "list": "[1]", "flag": "true", "day": "2020-01-02"},
        {"key": "b", "n": "2.5"},
        {"list": "[]", "flag": "false"},
    ]
    with pytest.raises(ValueError, match=r"t\.parquet row 1: video holds bytes, not text; name another column"):
        rows(tmp_path / "t.parquet")


def test_no_damaged_parquet_is_read(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"key": ["x" * 50] * 99}), path, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:100], b"key,text\na,b\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.parquet: no whole Parquet file"):
            rows(path)
    path.write_bytes(whole[:4] + bytes(40) + whole[44:])
    with pytest.raises(ValueError, match=r"t\.parquet: damaged after row 0"):
        rows(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=r"t\.parquet: stands for a file that Git LFS has not fetched; .*git lfs pull"):
        rows(path)


def test_json_lines_come_back(tmp_path):
    table = [{"file_name": f"{i}.mp4", "text": CELLS * i, "n": i} for i in range(3)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)) + "\n")
    assert rows(tmp_path / "t.jsonl") == [row | {"n": str(row["n"])} for row in table]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"key,text\na,b\nc,d, e\n", r"t\.csv line 3: 3 fields, but the header has 2; put cells that hold , between"),
        (b"key,text\na\n", r"line 2: 1 fields, but the header has 2"),
        (b'key,text\na,b\nc,"d\ne,f\n', r"line 3: unexpected end of data; a quote that is opened must be closed"),
        (b'key,text\na,"b"c\n', r"line 2: .*a quote that is opened"),
        ("key,text\na,caf\u00e9\n".encode("cp1252"), r"line 2: byte 0xe9 is not UTF-8; .* iconv -f cp1252"),
        (b"key,key\na,b\n", r"the header names 'key' twice"),
        (b"\n", r"no header"),
        (b"key,text\na," + b"x" * (MAX_CELL + 1) + b"\n", r"line 2: field larger than field limit"),
        (gzip.compress(b"key,text\na,b\n")[:-9], r"a gzip file that breaks off"),
    ],
    ids=["more fields", "fewer", "open quote", "after a quote", "cp1252", "column twice", "empty", "huge cell", "gzip"],
)
def test_no_illegal_table_is_read(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: holds list"),
        ("[" * 9999, "line 2: not JSON"),
        ('{"key": "b", "text": "a \\ud83d fox"}', r"line 2: text has half of a character \(\\ud83d\)"),
    ],
)
def test_no_illegal_json_lines_are_read(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text('{"key": "a"}\n' + line)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "key",
    ["cat/clip0.mp4", "./cat/clip0.mp4", "/somewhere/cat/clip0.mp4", "C:\\videos\\cat\\clip0.mp4", "cat\\clip0.mp4",
     "clip0.mp4", "clip0", "cat/clip0", "CLIP0.MP4", "Cat/Clip0"],
)  # fmt: skip
def test_ways_of_writing_a_path_make_no_difference(key):
    what = Description(caption="it")
    assert label_table.match(["cat/clip0.mp4", "dog/clip1.mp4"], {key: what}) == ({"cat/clip0.mp4": what}, [])


def test_a_key_names_one_file_and_a_file_has_one_row():
    what = Description(caption="it")
    accents = {"caf\u00e9.mp4": what}
    assert label_table.match(["cafe\u0301.mp4"], accents) == ({"cafe\u0301.mp4": what}, [])
    assert label_table.match(["cat/1.mp4"], {"dog/1.mp4": what}) == ({}, ["dog/1.mp4"])
    # Where case tells two files apart, it counts.
    assert label_table.match(["A.mp4", "a.mp4"], {"a.mp4": what})[0] == {"a.mp4": what}
    with pytest.raises(ValueError, match=r"'1' names both a/1\.mp4 and b/1\.mp4"):
        label_table.match(["a/1.mp4", "b/1.mp4"], {"1": what})
    with pytest.raises(ValueError, match=r"'1' and 'a/1\.mp4' name one file, a/1\.mp4"):
        label_table.match(["a/1.mp4"], {"1": what, "a/1.mp4": what})
    assert label_table.match(["1.mp4", "b/1.mp4"], {"1.mp4": what})[0] == {"1.mp4": what}


def test_the_nearest_name_is_shown():
    assert label_table.nearest("cat/clip9", ["dog/dig1.mp4", "cat/clip0.mp4"]) == "cat/clip0.mp4"


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ({"10", "9", "2"}, ("2", "9", "10")),
        ({"0.0", "10.0", "2.0"}, ("0.0", "2.0", "10.0")),
        ({"-1", "1e1", "5"}, ("-1", "5", "1e1")),
        ({"b", "a", "10"}, ("10", "a", "b")),
    ],
)
def test_numbers_sort_as_numbers(labels, order):
    assert label_table.class_names(labels) == order


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "None", "null", "<NA>"])
def test_nothing_is_no_class(tmp_path, cell):
    (tmp_path / "t.csv").write_text(f"key,label\na,{cell}\nb,cat\n")
    table = LabelTable(path=tmp_path / "t.csv", label="label")
    assert [what.label for what in table.rows().values()] == [None, "cat"]


def test_near_equal_classes_are_pointed_out():
    alone = "differ in case, spaces or the way of writing alone; is that one class?"
    one_way = {"cat", "dog", "-1", "1", "11", "a.b", "ab", "+", "-", "c++", "c"}
    assert label_table.near_equal(one_way) == []
    for names in (
        ["Cat", "cat"],
        ["big dog", "bigdog"],
        ["big-dog", "big_dog"],
        ["3", "3.0"],
        ["cafe\u0301", "caf\u00e9"],
    ):
        assert label_table.near_equal({*names, *one_way - {"cat"}}) == [
            f"classes {names[0]!r} and {names[1]!r} {alone}"
        ]
