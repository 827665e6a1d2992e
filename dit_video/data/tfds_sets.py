"""Sets that TFDS prepared as ArrayRecord, opened and written without TensorFlow.

Imported where a set is opened or written: TFDS takes a while to load.
"""

import contextlib
import os
import reprlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format, message

from dit_video.config.json_file import read_object
from dit_video.data.record import Split

# What TFDS, ArrayRecord and protobuf were seen to raise on damaged files; none of them says.
DAMAGE = (
    *(json_format.Error, message.Error, ArithmeticError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
# TFDS imports whatever module the description of a feature names.
_FEATURES = "tensorflow_datasets.core.features."


def open_set(directory: Path) -> tfds.core.DatasetBuilder:
    """Opens a prepared TFDS set.

    Raises:
        ValueError: its description is damaged, or names a class that is no feature of TFDS.
    """
    for name in _feature_classes(read_object(directory / "features.json")):
        if not (isinstance(name, str) and name.startswith(_FEATURES)):
            raise ValueError(f"{directory / 'features.json'}: {reprlib.repr(name)} is no feature of TFDS: not opened")
    if (directory / "dataset_info.json").is_file():
        read_object(directory / "dataset_info.json")  # in other words than those of TFDS where it is damaged
    try:
        return tfds.builder_from_directory(directory)
    except DAMAGE as error:
        raise ValueError(f"{directory}: no prepared TFDS set, dataset_info.json or features.json: {error}") from error


def _feature_classes(description: Any) -> Iterator[Any]:
    """Class names of all features in a description, in the spellings that TFDS reads."""
    waiting = [description]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in ("pythonClassName", "python_class_name", "type") if key in value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def version_of(directory: Path) -> tfds.core.Version:
    """The version that the last part of a path names; versions can be ordered."""
    return tfds.core.Version(directory.name)


def class_names(feature: Any) -> tuple[str, ...]:
    """Names of the classes of a feature; none where it is not of classes."""
    return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes else ()


class VideoSetBuilder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder that writes records given to it."""

    name = "video_set"
    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside a builder's code; nothing is downloaded here.
    code_path = None

    def __init__(
        self,
        *,
        records: Mapping[Split, Callable[[], Iterator[dict[str, Any]]]],
        class_names: Sequence[str],
        data_dir: str,
        beside: Sequence[str] = (),
    ):
        """Args:
        beside: names of further fields, as bytes.
        """
        self._records = records
        self._class_names = list(class_names)
        self._beside = tuple(beside)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _log_download_bytes(self) -> None:
        """Keeps TFDS from announcing a download that does not take place."""

    def _log_download_done(self) -> None:
        """Keeps TFDS from naming the temporary folder it wrote to."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "key": tfds.features.Text(),
            # Bytes of an mp4: Text is the feature that hands bytes through without TensorFlow.
            "video": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=self._class_names),
            "caption": tfds.features.Text(),
            "fps": np.float32,
            "num_frames": np.int32,
            **{name: tfds.features.Text() for name in self._beside},
        }
        return tfds.core.DatasetInfo(
            builder=self, description="Videos as mp4.", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split.value: self._generate_examples(split) for split in self._records}

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in self._records[split]():
            yield record["key"], record


@contextlib.contextmanager
def _equal_bytes() -> Iterator[None]:
    """Makes equal records equal bytes: protobuf writes the fields of one in another order in each process."""
    kind: Any = tfds.core.ExampleSerializer
    plain = kind.serialize_example
    kind.serialize_example = lambda self, example: self.get_tf_example(example).SerializeToString(deterministic=True)
    try:
        yield
    finally:
        kind.serialize_example = plain


@contextlib.contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """Keeps TFDS, which makes a temporary folder for each builder and leaves it, within the set that is written."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def write_records(
    directory: Path,
    records: Mapping[Split, Callable[[], Iterator[dict[str, Any]]]],
    class_names: Sequence[str],
    *,
    shard_size: int,
    beside: Sequence[str] = (),
) -> dict[tuple[Split, str], int]:
    """Writes records as shards into `directory`; returns the position of each, by its split and key.

    Args:
        shard_size: bytes after which TFDS begins another shard.
        beside: names of further fields of the records, as bytes.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(
        try_download_gcs=False, min_shard_size=min(shard_size, 64 << 20), max_shard_size=shard_size
    )
    with _equal_bytes(), _temporary_files_in(directory):
        folder = os.fspath(directory / "tfds")
        builder = VideoSetBuilder(records=records, class_names=class_names, data_dir=folder, beside=beside)
        builder.download_and_prepare(download_config=config)
    for path in Path(builder.data_dir).iterdir():
        path.rename(directory / path.name)
    shutil.rmtree(directory / "tfds")
    # TFDS orders records by a hash of their key; reading them back tells where each is and that all can be read.
    written, positions = tfds.builder_from_directory(directory), {}
    for split in records:
        source: Any = written.as_data_source(split=split.value)
        positions |= {(split, record["key"].decode()): i for i, record in enumerate(source)}
    return positions
