"""Tables of strangers, read strictly: CSV, TSV and JSON lines, in UTF-8 or UTF-16, plain or gzip; and Parquet.

What a lenient reader would cut, shift or guess is an error that names the file and the line.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

# Of the file, and after gzip; a million rows of a caption are some 200 MB.
MAX_BYTES = 1 << 30
# Of a cell: far more than a caption, far less than what an open quote swallows.
MAX_CELL = 1 << 17

_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
# Of rows of a Parquet file that are in memory at once.
_BATCH = 1 << 12
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


# A row by column, with its place for messages: file and line.
Row = tuple[str, Mapping[str, str]]


def read_rows(path: Path, only: Collection[str] | None = None) -> tuple[list[str], Iterator[Row]]:
    """Reads a table.

    Args:
        only: columns to read, None for all; of Parquet, where others may hold whole files, no more is read.

    Returns:
        The columns, and the rows, read as they are asked for; a row has no cell where there is none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another encoding, no header, a row with another number of fields, an open quote, a cell beyond
            MAX_CELL, a damaged file; names file and line. The rows raise it where they are reached.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"version https://"):
        raise ValueError(f"{path}: stands for a file that Git LFS has not fetched; fetch it: git lfs pull")
    stem = path.name.lower().removesuffix(".gz")
    if start.startswith(b"PAR1") or stem.endswith(_PARQUET):
        return _parquet_rows(path, only)
    text = _text(path)
    if stem.endswith(_JSON_LINES):
        rows = list(_json_rows(path, text))
        return list(dict.fromkeys(column for _, row in rows for column in row)), iter(rows)
    return _csv_rows(path, text)


def _parquet_rows(path: Path, only: Collection[str] | None) -> tuple[list[str], Iterator[Row]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: Parquet is read with pyarrow: pip install pyarrow, or make a CSV of it") from error
    try:
        file: Any = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no whole Parquet file ({error}); fetch it again") from error
    selected = [column for column in columns if only is None or column in only]

    def rows() -> Iterator[Row]:
        done, batches = 0, file.iter_batches(_BATCH, columns=selected)
        while True:
            try:
                batch = next(batches, None)
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}: damaged after row {done} ({error}); fetch it again") from error
            if batch is None:
                return
            for row in batch.to_pylist():
                done += 1
                where = f"{path} row {done}"
                yield where, {k: _parquet_cell(where, k, v) for k, v in row.items() if v is not None}

    return columns, rows()


def _parquet_cell(where: str, name: str, value: Any) -> str:
    if isinstance(value, bytes):
        raise ValueError(f"{where}: {name} holds bytes, not text; name another column")
    return _cell(where, name, value if isinstance(value, str | bool | int | float | list | dict) else str(value))


def _text(path: Path) -> str:
    content = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: a gzip file that breaks off or is damaged ({error}); fetch it again") from None
    if len(content) > MAX_BYTES or path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: more than the {MAX_BYTES} bytes that are read of a table; split it")
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", "utf-8"))
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[len(mark) + error.start]
        raise ValueError(
            f"{path} line {line}: byte 0x{byte:02x} is not {encoding.upper()}; save the table as UTF-8: if it is of "
            f"Windows, iconv -f cp1252 -t utf-8 {path.name}"
        ) from None


def _csv_rows(path: Path, text: str) -> tuple[list[str], Iterator[Row]]:
    first = text.split("\n", 1)[0]
    csv.field_size_limit(MAX_CELL)
    delimiter = max("\t,;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def next_row() -> list[str] | None:
        begin = reader.line_num + 1
        try:
            return next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path} line {begin}: {error}; a quote that is opened must be closed, and quotes within are doubled"
            ) from None

    columns = [column.strip() for column in next_row() or []]
    if not any(columns):
        raise ValueError(f"{path}: no header; its first line must name the columns")
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise ValueError(f"{path}: the header names {twice[0]!r} twice")

    def rows() -> Iterator[Row]:
        while (row := next_row()) is not None:
            if not any(row):
                continue  # a blank line
            if len(row) != len(columns):
                raise ValueError(
                    f"{path} line {reader.line_num}: {len(row)} fields, but the header has {len(columns)}; put cells "
                    f'that hold {"a tab" if delimiter == chr(9) else delimiter} between "quotes"'
                )
            yield f"{path} line {reader.line_num}", dict(zip(columns, row))

    return columns, rows()


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: holds {type(row).__name__}, not an object")
        yield where, {name: _cell(where, name, value) for name, value in row.items() if value is not None}


def _cell(where: str, name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > MAX_CELL:
        raise ValueError(f"{where}: {name} has {len(text)} characters, more than {MAX_CELL}")
    check_characters(text, f"{where}: {name}")
    return text


def check_characters(text: str, where: str) -> None:
    """Raises ValueError where JSON has half of a character, as \\ud83d without \\ude00, which no file can hold."""
    halves = [f"\\u{ord(character):04x}" for character in text if "\ud800" <= character <= "\udfff"]
    if halves:
        raise ValueError(f"{where} has half of a character ({halves[0]}); mend it")
