"""Labels, captions and splits of video files from the columns of a table."""

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dit_video.data.record import Split
from dit_video.ingest.tables import read_rows

_SPLIT_WORDS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "test": Split.HELD_OUT,
    "testing": Split.HELD_OUT,
    "val": Split.HELD_OUT,
    "valid": Split.HELD_OUT,
    "validation": Split.HELD_OUT,
    "held_out": Split.HELD_OUT,
}

# Comparing two names takes tens of microseconds.
_MOST_COMPARED = 10_000
_BETWEEN = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
# What pandas and spreadsheets write where there is no value.
_NO_LABEL = ("", "nan", "none", "null", "n/a", "<na>")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said of a file.

    Attributes:
        split: None where nothing says it: then its digest decides, or that of its group.
        group: name of what it was cut from: clips of one group stay on one side of the split.
    """

    label: str | None = None
    caption: str = ""
    split: Split | None = None
    group: str | None = None


def split_of(word: str) -> Split | None:
    """Parses the name of a split, in upper or lower case; None where it is none."""
    return _SPLIT_WORDS.get(word.strip().lower())


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A table whose rows give label, caption and split of files: CSV, TSV, JSON lines or Parquet (`tables.read_rows`).

    Attributes:
        path: the file; columns of a CSV are separated by commas, semicolons or tabs.
        key: the column that names a file, by its path within the source, with or without extension, or by its stem
            where that is unique.
        label, caption, split, group: the columns of these; None where the table has none, or not to be used.
    """

    path: str | os.PathLike
    key: str = "key"
    label: str | None = None
    caption: str | None = None
    split: str | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder, for manifests and messages."""
        return Path(self.path).name

    @property
    def columns(self) -> dict[str, str | None]:
        """Column by what it gives, None where there is none; that of groups is not among them."""
        return {"key": self.key, "label": self.label, "caption": self.caption, "split": self.split}

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return column in read_rows(Path(self.path))[0]

    def rows(self) -> dict[str, Description]:
        """Reads the rows by their key.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a column that is not there, two rows that contradict each other, an unknown split.
        """
        path = Path(self.path)
        present, lines = read_rows(path, [column for column in (*self.columns.values(), self.group) if column])
        for option, column in self.columns.items():
            if column is not None and column not in present:
                raise ValueError(f"--{option} {column}: {path} has no such column; it has {', '.join(present)}")
        rows: dict[str, Description] = {}
        for where, row in lines:
            name = row.get(self.key, "").strip()
            if not name:
                raise ValueError(f"{where}: no {self.key}")
            description = self._description(row, where)
            if rows.setdefault(name, description) != description:
                raise ValueError(f"{where}: {self.key}={name!r} stands in two rows that contradict each other")
        if not rows:
            raise ValueError(f"--labels {path}: no rows below the header")
        return rows

    def _description(self, row: Mapping[str, str], where: str) -> Description:
        def cell(column: str | None) -> str:
            return row.get(column, "").strip() if column else ""

        split = split_of(cell(self.split)) if self.split else None
        if self.split and split is None:
            words = ", ".join(sorted(_SPLIT_WORDS))
            raise ValueError(f"{where}: {self.split}={cell(self.split)!r} is no split; use one of {words}")
        caption, group = cell(self.caption), label_of(cell(self.group))
        return Description(label=label_of(cell(self.label)), caption=caption, split=split, group=group)


def metadata_table(source: Path, group: str | None = None) -> LabelTable | None:
    """The table of a Hugging Face folder: metadata.jsonl, .csv or .parquet with a column file_name; else None.

    Args:
        group: column that names what a file was cut from; not used where there is none.
    """
    for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
        path = source / name
        if source.is_dir() and path.is_file():
            columns, _ = read_rows(path)
            if "file_name" in columns:
                caption = next((word for word in ("text", "caption") if word in columns), None)
                label, split, group = (word if word in columns else None for word in ("label", "split", group))
                return LabelTable(path=path, key="file_name", label=label, caption=caption, split=split, group=group)
    return None


def label_of(word: str) -> str | None:
    """A class from a cell; None where it is blank, or what tables write for nothing."""
    return None if word.strip().lower() in _NO_LABEL else word.strip()


def match(names: Sequence[str], rows: Mapping[str, Description]) -> tuple[dict[str, Description], list[str]]:
    """Matches files with rows of a table: descriptions by file, and the keys of rows that name no file.

    A key names a file by the end of its path, as much of it as is unambiguous, with or without extension. What writes
    one path in two ways makes no difference: ./ and a leading folder, back slashes, forms of Unicode; nor does case,
    unless two files differ by it alone.

    Raises:
        ValueError: a row that names several files, or a file that several rows name; says which.
    """
    exact, folded = _by_ending(names, _plain), _by_ending(names, lambda text: _plain(text).casefold())
    described: dict[str, Description] = {}
    used: dict[str, str] = {}
    for key, description in rows.items():
        plain, absolute = _plain(key), _ABSOLUTE.match(key) is not None
        found = _named(plain, exact, absolute=absolute) or _named(plain.casefold(), folded, absolute=absolute)
        if len(found) > 1:
            raise ValueError(
                f"labels: {key!r} names both {found[0]} and {found[1]}; put paths within the source into the key column"
            )
        for name in found:
            if name in used:
                raise ValueError(f"labels: {used[name]!r} and {key!r} name one file, {name}; keep one of the rows")
            used[name], described[name] = key, description
    matched = set(used.values())
    return described, [key for key in rows if key not in matched]


def _plain(text: str) -> str:
    """A path in one way of writing it."""
    text = unicodedata.normalize("NFC", text).replace("\\", "/")
    return "/".join(part for part in text.split("/") if part not in ("", "."))


def _by_ending(names: Sequence[str], plain: Callable[[str], str]) -> dict[str, list[str]]:
    """Files by each ending of their paths, with and without extension."""
    endings: dict[str, list[str]] = {}
    for name in names:
        parts = plain(name).split("/")
        for begin in range(len(parts)):
            whole = PurePosixPath(*parts[begin:])
            for ending in {str(whole), str(whole.with_suffix(""))}:
                endings.setdefault(ending, []).append(name)
    return endings


def _named(key: str, endings: Mapping[str, list[str]], *, absolute: bool) -> list[str]:
    """The files that a key names: whose paths end as it does; of an absolute one, as the longest of its ends."""
    parts = key.split("/")
    for begin in range(len(parts) if absolute else 1):
        if found := endings.get("/".join(parts[begin:])):
            # A path that is this key whole is meant before those that only end in it.
            return [name for name in found if _plain(name).casefold() == key.casefold()] or found
    return []


def nearest(key: str, names: Sequence[str]) -> str:
    """The file whose name is nearest to a key, for a message; of many files, among the first."""
    return next(iter(difflib.get_close_matches(key, names[:_MOST_COMPARED], n=1, cutoff=0.0)), "")


def class_names(labels: set[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: by value where all are numbers, else alphabetical."""
    try:
        values = {label: float(label) for label in labels}
    except ValueError:
        values = {}
    return tuple(sorted(labels, key=(lambda label: (values[label], label)) if values else None))


def near_equal(labels: set[str]) -> list[str]:
    """Warnings of names of classes that differ in the way of writing alone, and are probably one."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(_gist(label), []).append(label)
    return [
        f"classes {' and '.join(map(repr, group))} differ in case, spaces or the way of writing alone; is that one "
        "class?"
        for group in groups.values()
        if len(group) > 1
    ]


def _gist(label: str) -> str:
    """What is left of a name without case, spaces, hyphens and forms of characters; of a number its value."""
    try:
        return repr(float(label))
    except ValueError:
        return _BETWEEN.sub("", unicodedata.normalize("NFKC", label).casefold().strip())
