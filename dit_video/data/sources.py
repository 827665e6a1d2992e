"""Data sources of records. A source is a value in an experiment: making one does no I/O, `open` does.

VideoSet      what `dit-video data ingest` wrote
TFDSSet       a TFDS data set prepared as ArrayRecord, read without TensorFlow
MovingDigits  embedded: prepared on first use, needs no download
TextSet       what `dit-video data text` wrote
LatentCache   moments that `dit-video encode` wrote
NoData        none: of a run that was made of published weights
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from dit_video.config.bounds import at_least
from dit_video.config.json_file import read_object
from dit_video.config.paths import expand, shell_word
from dit_video.data import builders, latent_cache
from dit_video.data.record import Examples, Split
from dit_video.data.text_set import TextManifest, TextRows, read_text_manifest, text_digest
from dit_video.data.tokenizers import BytePairs, Bytes, Tokenizer
from dit_video.data.video_set import MANIFEST, Manifest, read_manifest, set_digest
from dit_video.video.actions import ActionSpace


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Class names and digests of a data source, for runs and evaluation cards.

    Attributes:
        class_names: label i means class_names[i]; empty where there are no classes.
        digest: sha256 of the manifest.
        split_digest: per split, sha256 over the sorted digests of its source files.
        actions: of which records have one a frame; None where they have none.
    """

    class_names: tuple[str, ...]
    num_records: dict[Split, int]
    digest: str
    split_digest: dict[Split, str]
    actions: ActionSpace | None = None


@runtime_checkable
class Source(Protocol):
    """Data source: random-access records of a training and a held-out split."""

    def open(self, split: Split) -> Examples:
        """The records of a split.

        Raises:
            FileNotFoundError, ValueError: the set is not there, or not of the kind; says how to make it.
        """
        ...

    def info(self) -> SourceInfo: ...


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Data source: a video set written by `dit-video data ingest`."""

    directory: str

    PATHS: ClassVar[tuple[str, ...]] = ("directory",)

    def __post_init__(self):
        expand(self)

    def manifest(self) -> Manifest:
        remedy = f"make it with: dit-video data ingest FOLDER_OR_TAR --out {shell_word(self.directory)}"
        return read_manifest(self.directory, remedy=remedy)

    def open(self, split: Split) -> Examples:
        return _stored_videos(self.directory, self.manifest(), split)

    def info(self) -> SourceInfo:
        return _video_set_info(self.directory, self.manifest())


@dataclass(frozen=True, kw_only=True)
class MovingDigits:
    """Data source: a handwritten digit moving over a dark square, bouncing off its edges; labelled and captioned.

    The digits are the 1,797 scans that scikit-learn ships; those of held-out clips are in no training clip.
    Prepared in `directory` when first opened.

    Attributes:
        size: height and width of the square.
        digit_size: height and width of the digit in it.
    """

    directory: str = "data/moving_digits"
    num_train: int = 4000
    num_held_out: int = 500
    size: int = 32
    num_frames: int = 9
    digit_size: int = 20
    seed: int = 0

    @property
    def is_prepared(self) -> bool:
        return (Path(self.directory) / MANIFEST).exists()

    def manifest(self) -> Manifest:
        return builders.prepared_digits(self.directory, self._settings())

    def open(self, split: Split) -> Examples:
        return _stored_videos(self.directory, self.manifest(), split)

    def info(self) -> SourceInfo:
        return _video_set_info(self.directory, self.manifest())

    def _settings(self) -> builders.DigitSettings:
        return builders.DigitSettings(
            num_train=self.num_train,
            num_held_out=self.num_held_out,
            size=self.size,
            num_frames=self.num_frames,
            digit_size=self.digit_size,
            seed=self.seed,
        )

    PATHS: ClassVar[tuple[str, ...]] = ("directory",)

    def __post_init__(self):
        expand(self)
        self._settings()


def check_prepared(source: Source) -> None:
    """Raises FileNotFoundError where `source` would make its set if it were opened; says how to make it.

    For who has the source from a record: a record may name any folder, and is no leave to write there.
    """
    if isinstance(source, MovingDigits) and not source.is_prepared:
        settings = " ".join(f"--{name} {value}" for name, value in dataclasses.asdict(source._settings()).items())
        raise FileNotFoundError(
            f"{source.directory}: the moving digits of this run are not there, and only training makes them by itself; "
            f"make them with: dit-video data digits --out {shell_word(source.directory)} {settings}"
        )


def _stored_videos(directory: str, manifest: Manifest, split: Split) -> Examples:
    # Here, so that an experiment is read without what reads its data.
    from dit_video.data.stored_videos import StoredVideos

    return StoredVideos(directory, manifest, split)


def _video_set_info(directory: str, manifest: Manifest) -> SourceInfo:
    counts = {split: len(manifest.stored(split)) for split in Split}
    splits = [split for split in Split if counts[split]]
    return SourceInfo(
        class_names=manifest.class_names,
        num_records=counts,
        digest=set_digest(Path(directory)),
        split_digest={split: manifest.split_digest(split) for split in splits},
        actions=None if manifest.tracks is None else manifest.tracks.actions,
    )


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Data source: a text set written by `dit-video data text`, cut into rows of one length.

    Attributes:
        length: tokens of a row.
        align: documents begin at multiples of it; the size of blocks where text is written in such.
        tokenizer: that of the set, with which it is compared.
    """

    directory: str
    length: int = 256
    align: int = 1
    tokenizer: Tokenizer = Bytes()

    PATHS: ClassVar[tuple[str, ...]] = ("directory",)

    def __post_init__(self):
        expand(self)
        at_least(self, 1, "length", "align")
        if self.length % self.align:
            raise ValueError(f"TextSet.length={self.length}: must be a multiple of align={self.align}")

    def manifest(self) -> TextManifest:
        manifest = read_text_manifest(self.directory)
        if not _same_tokens(manifest.tokenizer, self.tokenizer):
            raise ValueError(
                f"TextSet.tokenizer={self.tokenizer}: {self.directory} was made with {manifest.tokenizer}; name that "
                "one, or make the set again (dit-video data text --tokenizer)"
            )
        return manifest

    def open(self, split: Split) -> Examples:
        return TextRows(self.directory, self.manifest(), split, length=self.length, align=self.align)

    def info(self) -> SourceInfo:
        manifest = self.manifest()
        there = [split for split in Split if manifest.num_tokens.get(split.value)]
        return SourceInfo(
            class_names=(),
            num_records={split: len(self.open(split)) if split in there else 0 for split in Split},
            digest=text_digest(Path(self.directory)),
            split_digest={split: manifest.split_digests[split.value] for split in there},
        )


def _same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether two tokenizers are one; of two files that have as many tokens the contents decide."""
    if isinstance(a, BytePairs) and isinstance(b, BytePairs):
        return a.num_tokens == b.num_tokens and Path(a.file).read_bytes() == Path(b.file).read_bytes()
    return a == b


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """Data source: a latent cache written by `dit-video encode`."""

    directory: str

    PATHS: ClassVar[tuple[str, ...]] = ("directory",)

    def __post_init__(self):
        expand(self)

    def open(self, split: Split) -> Examples:
        return latent_cache.CachedExamples(self.directory, split)

    def info(self) -> SourceInfo:
        manifest = self.manifest()
        return SourceInfo(
            class_names=manifest.class_names,
            num_records=manifest.num_records,
            digest=manifest.digest,
            split_digest=manifest.split_digests,
            actions=manifest.actions,
        )

    def manifest(self) -> latent_cache.CacheManifest:
        return latent_cache.read_cache_manifest(self.directory)

    def quality(self) -> latent_cache.CodecQuality | None:
        """How much of its clips the codec keeps, as `encode` measured it; None where it did not, or has not yet run."""
        if not (Path(self.directory) / MANIFEST).exists():
            return None
        return self.manifest().quality

    def provenance(self) -> dict[str, Any]:
        """The VAE, statistics, preprocessing and videos that the moments were made with, as `encode` wrote it."""
        return self.manifest().provenance


@dataclass(frozen=True, kw_only=True)
class NoData:
    """Data source without records, of a run imported from published weights: for sampling, export and fine-tuning.

    Attributes:
        class_names: label i means class_names[i].
        fps: frames per second of the clips that are made.
    """

    class_names: tuple[str, ...] = ()
    fps: float = 8.0

    def open(self, split: Split) -> Examples:
        raise ValueError(
            f"config.data.source=NoData: there are no {split.value} clips in a run of published weights; import them "
            "for an experiment of your own that has data (dit-video import --config), or start one from them "
            "(dit-video train --init_from)"
        )

    def info(self) -> SourceInfo:
        none = hashlib.sha256().hexdigest()
        return SourceInfo(
            class_names=self.class_names, num_records=dict.fromkeys(Split, 0), digest=none, split_digest={}
        )


@dataclass(frozen=True, kw_only=True)
class TFDSSet:
    """Data source: a TFDS data set prepared on this machine with file_format="array_record".

    Its video feature may be encoded bytes (Text, or a scalar Tensor of objects), a Sequence of Images, or a
    uint8 Tensor.

    Attributes:
        name: as in tfds.load: "name", "name/config" or "name/config:1.2.3"; without a version, the newest
            one.
        video, label, caption: names of features; None for what the set has not.
        train, held_out: splits of the set, slices like "train[:90%]" included.
        fps: of image sequences, which do not say.
    """

    name: str
    data_dir: str
    video: str = "video"
    label: str | None = "label"
    caption: str | None = None
    train: str = "train"
    held_out: str = "test"
    fps: float = 25.0

    PATHS: ClassVar[tuple[str, ...]] = ("data_dir",)

    def __post_init__(self):
        expand(self)

    def open(self, split: Split) -> Examples:
        from dit_video.data.stored_videos import FeatureVideos

        name = self.train if split is Split.TRAIN else self.held_out
        return FeatureVideos(
            self._builder().as_data_source(split=name),
            f"{self.name}/{name}",
            video=self.video,
            label=self.label,
            caption=self.caption,
            fps=self.fps,
        )

    def info(self) -> SourceInfo:
        from dit_video.data.tfds_sets import class_names

        builder = self._builder()
        # TFDS keeps no digests of its sources; sizes and counts of every shard stand in for them.
        facts = (Path(builder.data_dir) / "dataset_info.json").read_bytes()
        splits = {Split.TRAIN: self.train, Split.HELD_OUT: self.held_out}
        label = builder.info.features[self.label] if self.label else None
        names = class_names(label) if label is not None else ()
        return SourceInfo(
            class_names=names,
            num_records={split: builder.info.splits[name].num_examples for split, name in splits.items()},
            digest=hashlib.sha256(facts).hexdigest(),
            split_digest={s: hashlib.sha256(facts + name.encode()).hexdigest() for s, name in splits.items()},
        )

    def _directory(self) -> Path:
        name, _, version = self.name.partition(":")
        folder = Path(self.data_dir) / name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"TFDSSet.name={self.name!r}: {folder} does not exist; prepare the set there with: "
                f"tfds build {name} --data_dir={shell_word(self.data_dir)} --file_format=array_record"
            )
        versions = [path for path in folder.iterdir() if (path / "dataset_info.json").exists()]
        if version:
            versions = [path for path in versions if path.name == version]
        if not versions:
            raise FileNotFoundError(f"TFDSSet.name={self.name!r}: {folder} holds no prepared version {version or ''}")
        from dit_video.data.tfds_sets import version_of

        return max(versions, key=version_of)

    def _builder(self) -> Any:
        from dit_video.data.tfds_sets import open_set

        directory = self._directory()
        file_format = read_object(directory / "dataset_info.json").get("fileFormat", "tfrecord")
        if file_format != "array_record":
            target = f"{directory.parent}-array_record/{directory.name}"
            raise ValueError(
                f"TFDSSet.name={self.name!r}: stored as {file_format}, without random access; convert it with: "
                f"tfds convert_format --dataset_version_dir={shell_word(directory)} --out_file_format=array_record "
                f"--out_dir={shell_word(target)}"
            )
        features = read_object(directory / "features.json")["featuresDict"]["features"]
        for option in ("video", "label", "caption"):
            feature = getattr(self, option)
            if feature is not None and feature not in features:
                raise ValueError(
                    f"TFDSSet.{option}={feature!r}: {self.name} has no such feature; it has " + ", ".join(features)
                )
        for feature, description in features.items():
            if description["pythonClassName"].endswith(".Video"):
                raise ValueError(
                    f"TFDSSet.name={self.name!r}: feature {feature!r} is a tfds.features.Video, which cannot "
                    "be opened without TensorFlow; where TensorFlow is installed, write its clips as mp4 "
                    "files, then: dit-video data ingest FOLDER --out DIR, and use VideoSet"
                )
        return open_set(directory)
