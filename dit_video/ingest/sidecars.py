"""Sidecar files: caption and class in files with the name of a video, as in WebDataset and captioned folders.

clip.mp4
clip.txt    its caption
clip.cls    its class
clip.json   {"caption" or "text": ..., "label", "class" or "cls": ..., "split": ...}
"""

import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dit_video.ingest.label_table import Description, label_of, split_of
from dit_video.ingest.source_files import SourceFile
from dit_video.ingest.tables import check_characters

# What is read of one; a caption is far shorter.
MAX_BYTES = 1 << 20
SUFFIXES = (".txt", ".cls", ".json")
# Suffixes that are no video where a file of the same name with another suffix is there.
_BESIDE = (*SUFFIXES, ".csv", ".tsv", ".jsonl", ".srt", ".vtt", ".md", ".yaml", ".npy", ".npz", ".pt")


def is_note(name: str) -> bool:
    """Whether a file is text or numbers by its suffix, and no video."""
    return PurePosixPath(name).suffix.lower() in _BESIDE


def separate(items: Sequence[SourceFile]) -> tuple[list[SourceFile], dict[str, list[SourceFile]]]:
    """Separates sidecars from videos.

    Returns:
        All files, sidecars with the reason that they are; and the sidecars of each video, by its key.
    """
    candidates = [item for item in items if not item.reason and not is_note(item.name)]
    # By its name without extension; and whole, for that of a folder of pictures has none, whatever dots are in it.
    videos = {(item.source, item.name): item for item in candidates}
    videos |= {(item.source, str(PurePosixPath(item.name).with_suffix(""))): item for item in candidates}
    marked, sidecars = [], {}
    for item in items:
        path = PurePosixPath(item.name)
        video = videos.get((item.source, str(path.with_suffix(""))))
        if not item.reason and is_note(item.name) and video is not None:
            if path.suffix.lower() in SUFFIXES:
                sidecars.setdefault(video.key, []).append(item)
            item = replace(item, reason=f"a sidecar of {video.key}")
        marked.append(item)
    return marked, sidecars


def describe(sidecars: Mapping[str, Sequence[SourceFile]], group: str | None = None) -> dict[str, Description]:
    """Caption, class and split of each video that has sidecars, by its key.

    Args:
        group: field of clip.json that names what a clip was cut from.

    Raises:
        ValueError: one that is no UTF-8, no JSON object, or longer than MAX_BYTES; names it.
    """
    described: dict[str, Description] = {}
    for source in dict.fromkeys(item.source for items in sidecars.values() for item in items):
        with _opened(source) as read:
            for key, items in sidecars.items():
                for item in items:
                    if item.source == source:
                        described[key] = _with(described.get(key, Description()), item, read(item.name), group)
    return described


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Callable[[str], bytes]]:
    """A function that reads a file of a folder or tar by its name, no more of it than shows that it is too long."""
    if source.is_dir():

        def read(name: str) -> bytes:
            with (source / name).open("rb") as file:
                return file.read(MAX_BYTES + 1)

        yield read
        return
    with tarfile.open(source) as archive:
        members: dict[str, tarfile.TarInfo] = {}
        for member in archive:
            if member.isfile():
                members.setdefault(member.name, member)

        def read_member(name: str) -> bytes:
            file = archive.extractfile(members[name])
            return b"" if file is None else file.read(MAX_BYTES + 1)

        yield read_member


def _with(what: Description, item: SourceFile, content: bytes, group: str | None) -> Description:
    """`what`, updated with the content of a sidecar."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{item.key}: more than the {MAX_BYTES} bytes that are read of a sidecar")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{item.key}: not UTF-8 (byte {error.start}); save it as UTF-8, or take it away") from None
    suffix = PurePosixPath(item.name).suffix.lower()
    if suffix == ".txt":
        return replace(what, caption=" ".join(text.split()))
    if suffix == ".cls":
        return replace(what, label=label_of(text))
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{item.key}: not JSON ({error}); mend it, or take it away") from None
    if not isinstance(fields, dict):
        return what
    values = {name: str(value) for name, value in fields.items() if isinstance(value, str | int)}
    for name, value in values.items():
        check_characters(value, f"{item.key}: {name}")
    caption = next((values[name] for name in ("caption", "text") if name in values), what.caption)
    label = next((values[name] for name in ("label", "class", "cls") if name in values), what.label or "")
    split, of_group = split_of(values.get("split", "")) or what.split, label_of(values.get(group or "", ""))
    return replace(what, caption=caption, label=label_of(label), split=split, group=of_group or what.group)
