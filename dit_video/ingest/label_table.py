"""Labels, captions and splits of video files: classes from sub-folders, or columns of a CSV table."""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dit_video.data.record import Split

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


@dataclass(frozen=True, kw_only=True)
class Description:
    """Label, caption and split of a file. `split` None: decided by the file's digest."""

    label: str | None = None
    caption: str = ""
    split: Split | None = None


def split_of(word: str) -> Split | None:
    """Parses the name of a split, in upper or lower case; None where it is none."""
    return _SPLIT_WORDS.get(word.strip().lower())


def from_folders(names: Sequence[str]) -> dict[str, Description]:
    """Class labels from sub-folders.

    Folders that all files share say nothing and are dropped. Then, where the folders left are all named after
    splits (train/, test/, val/), they are the split and the next folder is the class; otherwise the first
    folder is the class. Files beside class folders have no label.

    Args:
        names: paths within one source, with '/'.
    """
    folders = {name: PurePosixPath(name).parts[:-1] for name in names}
    if not folders:
        return {}
    shared = 0
    while len({parts[: shared + 1] for parts in folders.values()}) == 1 and shared < len(min(folders.values())):
        shared += 1
    folders = {name: parts[shared:] for name, parts in folders.items()}
    splits = {name: split_of(parts[0]) if parts else None for name, parts in folders.items()}
    if None not in splits.values():
        folders = {name: parts[1:] for name, parts in folders.items()}
    else:
        splits = dict.fromkeys(names)
    return {name: Description(label=parts[0] if parts else None, split=splits[name]) for name, parts in folders.items()}


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A CSV or TSV with a header, whose rows give label, caption and split of files.

    Attributes:
        path: the file; columns are separated by commas, semicolons or tabs.
        key: the column that names a file, by its path within the source, with or without extension, or by its stem
            where that is unique.
        label, caption, split: the columns of these; None where the table has none, or not to be used.
    """

    path: str | os.PathLike
    key: str = "key"
    label: str | None = None
    caption: str | None = None
    split: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder, for manifests and messages."""
        return Path(self.path).name

    @property
    def columns(self) -> dict[str, str | None]:
        """Column by what it gives, None where there is none."""
        return {"key": self.key, "label": self.label, "caption": self.caption, "split": self.split}

    def rows(self) -> dict[str, Description]:
        """Reads the rows by their key.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a column that is not there, two rows that contradict each other, an unknown split.
        """
        path = Path(self.path)
        if not path.is_file():
            raise FileNotFoundError(f"--labels {path}: no such file")
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max("\t,;", key=header.count))
            present = reader.fieldnames or []
            for option, column in self.columns.items():
                if column is not None and column not in present:
                    raise ValueError(f"--{option} {column}: {path} has no such column; it has {', '.join(present)}")
            rows: dict[str, Description] = {}
            for row in reader:
                where = f"{path} line {reader.line_num}"
                name = (row[self.key] or "").strip()
                if not name:
                    raise ValueError(f"{where}: no {self.key}")
                description = self._description(row, where)
                if rows.setdefault(name, description) != description:
                    raise ValueError(f"{where}: {self.key}={name!r} stands in two rows that contradict each other")
        if not rows:
            raise ValueError(f"--labels {path}: no rows below the header")
        return rows

    def _description(self, row: Mapping[str, str | None], where: str) -> Description:
        def cell(column: str | None) -> str:
            return (row[column] or "").strip() if column else ""

        split = split_of(cell(self.split)) if self.split else None
        if self.split and split is None:
            words = ", ".join(sorted(_SPLIT_WORDS))
            raise ValueError(f"{where}: {self.split}={row[self.split]!r} is no split; use one of {words}")
        return Description(label=cell(self.label) or None, caption=cell(self.caption), split=split)


def match(names: Sequence[str], rows: Mapping[str, Description]) -> tuple[dict[str, Description], list[str]]:
    """Matches files with rows of a table: descriptions by file, and the keys of rows that name no file.

    Raises:
        ValueError: a row that names several files by their stem.
    """
    described: dict[str, Description] = {}
    used: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        for key in (name, str(path.with_suffix("")), path.name, path.stem):
            if key in rows:
                if key in used:
                    raise ValueError(
                        f"labels: {key!r} names both {used[key]} and {name}; "
                        "put paths within the source into the key column"
                    )
                used[key] = name
                described[name] = rows[key]
                break
    return described, [key for key in rows if key not in used]


def class_names(labels: set[str]) -> tuple[str, ...]:
    """Class names in the order of their labels: by value where all are whole numbers, else alphabetical."""
    numeric = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if numeric else None))
