"""Google Cloud Storage: runs in a bucket, gs://bucket/run, whose objects are named like the files of a run folder.

Google Cloud Storage writes an object only while it is of the generation that the writer names, so that of several
writers one wins; the lock of a run rests on that. Orbax writes no S3.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore

from dit_video.config.extras import install

# Two letters at least: C: is a disk. A path has lost one of the two slashes.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
_GCS = "gs"
# gcsfs takes these for patterns, and would find the objects of other runs.
_PATTERN = re.compile(r"[*?\[\]#]")

# Of requests for the record and the lock; those for arrays are Orbax's, which waits for minutes.
_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "16s"}


def address(name: str | Path) -> str | None:
    """Parses the address of a run in a bucket, gs://bucket/run; None where `name` is a folder.

    Raises:
        ValueError: it is the address of another kind of store, lacks bucket or name, or has a name that
            some programs read in another way.
    """
    match = _ADDRESS.match(str(name))
    if match is None:
        return None
    scheme, rest = match[1].lower(), match[2].strip("/")
    if scheme != _GCS:
        raise ValueError(
            f"{name}: a run is kept in a folder, or in a bucket of Google Cloud Storage (gs://bucket/run). Mount "
            "another kind of bucket as a folder (mount-s3, rclone mount), or train in a local folder and copy that"
        )
    parts = rest.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts) or _PATTERN.search(rest):
        raise ValueError(f"{name}: names no run in a bucket; give gs://bucket/run, without {_PATTERN.pattern} and ..")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{name}: runs in a bucket need gcsfs: {install('gcs')}")
    return f"gs://{rest}"


class Read(NamedTuple):
    """An object with its generation; content None where it does not exist, or is unchanged since the one named."""

    content: bytes | None
    generation: bytes


class Bucket:
    """Objects of one run, by the names that files have in a run folder."""

    def __init__(self, where: str):
        """`where` is gs://bucket/run."""
        bucket, _, folder = where.removeprefix("gs://").partition("/")
        context = tensorstore.Context({"gcs_request_retries": _RETRIES})
        spec = {"driver": "gcs", "bucket": bucket, "path": f"{folder}/"}
        self.where = where
        self._store = tensorstore.KvStore.open(spec, context=context).result()

    def read(self, name: str, *, unless: bytes | None = None) -> Read:
        """Reads an object, unless its generation is still `unless`."""
        read = self._store.read(name, if_not_equal=unless).result()
        return Read(read.value if read.state == "value" else None, read.stamp.generation)

    def write(self, name: str, content: bytes | None, *, only: bytes | None = None) -> bytes | None:
        """Writes an object, or deletes it without content; the new generation, None where it was no longer `only`."""
        return self._store.write(name, content, if_equal=only).result().generation or None

    def top(self) -> list[str]:
        """Names of the objects at the top, outside of folders."""
        # Steps have thousands of objects, which lie between these: '0' follows '/'.
        parts = (("", "checkpoints/"), ("checkpoints0", "checkpoints_damaged/"), ("checkpoints_damaged0", ""))
        names: list[bytes] = []
        for first, last in parts:
            names += self._store.list(tensorstore.KvStore.KeyRange(first, last)).result()
        # Some programs make an object for a folder, whose name is empty here.
        return sorted(name for name in map(bytes.decode, names) if name and "/" not in name)


class BucketLock:
    """Lock of a run in a bucket, RUN/lock.json; see dit_video/run/lock.py."""

    def __init__(self, where: str, name: str):
        self._bucket, self._name = Bucket(where), name
        self.where, self.run = f"{where}/{name}", where

    def create(self, text: str) -> bool:
        """Creates the lock; False where there is one already."""
        absent = self._bucket.read(self._name)
        if absent.content is not None:
            return False
        return self._bucket.write(self._name, text.encode(), only=absent.generation) is not None

    def read(self) -> str | None:
        content = self._bucket.read(self._name).content
        return None if content is None else content.decode(errors="replace")

    def touch(self) -> None:
        read = self._bucket.read(self._name)
        if read.content is not None:
            # Where somebody was faster, the lock was touched, removed or taken over.
            self._bucket.write(self._name, read.content, only=read.generation)

    def remove(self, text: str) -> bool:
        """Removes the lock if it still has this text; of several callers one succeeds."""
        read = self._bucket.read(self._name)
        if read.content != text.encode():
            return False
        return self._bucket.write(self._name, None, only=read.generation) is not None

    def sign(self) -> bytes | None:
        """The generation of the lock, which changes when the holder touches it; None where there is no lock."""
        read = self._bucket.read(self._name)
        return None if read.content is None else read.generation

    def age(self) -> float:
        """Seconds since the lock was touched: always 0, because clocks of other machines are not known."""
        return 0.0


def files_of_buckets() -> Any:
    """fsspec file system of buckets, the same that Orbax uses: names are gs://bucket/..."""
    import fsspec

    # What TensorStore writes is not known to a cache of listings.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gs")
