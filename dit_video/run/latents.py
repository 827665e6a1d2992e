"""The latent cache of an experiment: clips encoded once by its codec; checked against the codec when it is read."""

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from rich.console import Console

from dit_video.arrays import Video
from dit_video.config.components import to_json
from dit_video.config.json_file import other_values
from dit_video.config.old_records import upgrade
from dit_video.config.user_file import ExperimentError
from dit_video.data.batch import collate
from dit_video.data.dataset import Data
from dit_video.data.latent_cache import CodecQuality, write_latent_cache
from dit_video.data.loader import held_out_clips
from dit_video.data.record import Clip, Split
from dit_video.data.shapes import records_by_shape
from dit_video.data.transforms import ClipTransform, Usable, usable
from dit_video.data.video_set import MANIFEST
from dit_video.distributed.sharding import make_mesh, place
from dit_video.evaluation.reconstruction import finite_psnr, mean_frames
from dit_video.experiment import Experiment
from dit_video.progress import counted
from dit_video.run.codec import trained_codec
from dit_video.run.compilation_cache import keep_compiled_programs
from dit_video.vae.codec import LatentCodec
from dit_video.vae.trained_codec import name_codec_as

# Clips that show how much a codec keeps.
_NUM_JUDGED = 64


def encode(experiment: Experiment, *, clips_per_video: int, overwrite: bool, console: Console) -> None:
    """Writes the latent cache that `experiment.data.cache` names: moments [t h w 2c] of clips of both splits.

    Args:
        clips_per_video: clips that begin at different frames, at most so many of each video.
        overwrite: deletes the cache that is there, whatever it was made with.

    Raises:
        ExperimentError: the experiment names no cache or no codec, or its source holds latents already.
    """
    data, named = experiment.data, experiment.task.trained_codec()
    if data.cache is None or named is None:
        raise ExperimentError("config.data.cache is None: this experiment trains on video and has no cache to write")
    keep_compiled_programs()
    mesh = make_mesh(experiment.mesh)
    codec, _, statistics = trained_codec(named, mesh, console, experiment)
    folder, info = Path(data.cache.directory), data.source.info()
    cuts = {
        split: _cuts(data, split, clips_per_video)
        for split, inventory in data.inventories().items()
        if split is Split.TRAIN or inventory.num_usable != 0
    }
    totals = {split: sum(cut.num_clips for cut in of_split) for split, of_split in cuts.items()}
    if note := share_note(cuts[Split.TRAIN]):
        console.print(note, highlight=False)
    made_with = provenance(experiment, name_codec_as(None, codec), statistics)
    if folder.exists() and overwrite:
        data.cache.info()  # an error unless it is a latent cache: nothing else is ever deleted
        shutil.rmtree(folder)
    if (folder / MANIFEST).exists() and data.cache.info().num_records == totals:
        existing = upgrade(data.cache.provenance())
        if existing == made_with | {"codec": name_codec_as(_codec_of(existing), codec)}:
            console.print(f"latent cache: {folder} is there already", highlight=False)
            return
    moments_of = jax.jit(lambda codec, video: codec.moments(video))

    def clips(split: Split) -> Iterator[Clip]:
        of_shapes = [
            _chunks(
                held_out_clips(c.records, c.transform, num_clips=c.num_clips, seed=experiment.seed), data.batch_size
            )
            for c in cuts[split]
        ]
        chunks = itertools.chain.from_iterable(of_shapes)

        def encoded() -> Iterator[Clip]:
            for rows in chunks:
                # One program for each shape: a short last batch is filled up with its last clip.
                filled = rows + [rows[-1]] * (data.batch_size - len(rows))
                with jax.set_mesh(mesh):
                    found = np.asarray(moments_of(codec, place(collate(filled, {}).video, mesh)))
                for clip, moments in zip(rows, found):
                    yield dataclasses.replace(clip, video=None, moments=moments)

        return iter(counted(encoded(), f"encoding {split}", total=totals[split], console=console))

    rebuild = jax.jit(lambda codec, video: codec.decode(codec.whiten(codec.moments(video))))

    def rebuilt(video: Video) -> Video:
        with jax.set_mesh(mesh):
            return np.asarray(rebuild(codec, place(video, mesh)))

    quality = codec_quality(experiment, rebuilt)
    write_latent_cache(
        folder,
        {split: clips(split) for split in totals},
        class_names=info.class_names,
        split_digests=info.split_digest,
        provenance=made_with,
        quality=quality,
        actions=info.actions,
        clip_of={named.vae.latent_shape(shape.clip): shape.clip for shape in data.shapes} or None,
    )
    console.print(f"latent cache: {folder}{'' if quality is None else f'; {quality}'}", highlight=False)
    for line in [] if quality is None else quality.warnings():
        console.print(f"warning: {line}", style="yellow")


def codec_quality(experiment: Experiment, rebuilt: Callable[[Video], Video]) -> CodecQuality | None:
    """How much of clips is kept by `rebuilt`, which encodes and decodes a batch of them; None of single frames.

    They are held out, or of the training set where there are no others.
    """
    data = experiment.data
    if data.clips.num_frames == 1:
        return None
    num_clips = {split: inventory.num_clips for split, inventory in data.inventories().items()}
    split = Split.HELD_OUT if num_clips.get(Split.HELD_OUT, 0) != 0 else Split.TRAIN
    available = num_clips[split]
    total = _NUM_JUDGED if available is None else min(available, _NUM_JUDGED)
    errors = []
    for batch, valid in data.judged(split, total, data.batch_size, seed=experiment.seed):
        video = np.asarray(batch.require_video())
        rows = video[:valid]
        errors.append((finite_psnr(rows, rebuilt(video)[:valid]), finite_psnr(rows, mean_frames(rows))))
    ours, still = (float(np.median(np.concatenate(values))) for values in zip(*errors))
    return CodecQuality(split=split.value, num_clips=total, psnr=ours, psnr_mean_frame=still)


class Cut(NamedTuple):
    """Videos long enough for a clip of one shape, and how their clips are cut and counted.

    Attributes:
        num_clips: that are encoded.
        num_apart: that each video has without a frame in common.
    """

    records: Usable
    transform: ClipTransform
    num_clips: int
    num_apart: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, records: Usable, transform: ClipTransform, clips_per_video: int) -> "Cut":
        num_frames = records.num_frames
        if num_frames is None:
            raise ExperimentError("config.data.source: holds latents already; name a source of video")
        num_starts = transform.num_starts(num_frames, records.fps)
        num_clips = int(np.minimum(num_starts, clips_per_video).sum())
        return cls(records, transform, num_clips, num_frames // (num_frames - num_starts + 1))


def share_note(cuts: Sequence[Cut]) -> str | None:
    """Where the clips of `cuts` are less than half of what their videos have: the share, and how to encode all."""
    num_clips, apart = sum(cut.num_clips for cut in cuts), np.concatenate([cut.num_apart for cut in cuts])
    if not num_clips or 2 * num_clips >= apart.sum():
        return None
    return (
        f"{num_clips} clips are {num_clips / apart.sum():.0%} of what their videos have; "
        f"--clips_per_video={apart.max()} encodes all of it"
    )


def _cuts(data: Data, split: Split, clips_per_video: int) -> list[Cut]:
    """The clips of a split that are encoded: of training in the shapes that they are trained on in, others in one."""
    examples = data.source.open(split)
    if data.shapes and split is Split.TRAIN:
        by_shape = records_by_shape(examples, data.shapes, data.clips)
        pairs = [(records, shape.cut(data.clips)) for records, shape in zip(by_shape, data.shapes)]
    else:
        pairs = [(usable(examples, data.clips), data.clips)]
    return [Cut.of(records, cut, clips_per_video) for records, cut in pairs]


def check_cache(experiment: Experiment, frozen: Any) -> None:
    """Raises ExperimentError where the latent cache was not made by the codec of `frozen`, or for other clips."""
    cache, named = experiment.data.cache, experiment.task.trained_codec()
    if cache is None:
        return
    if named is None or named.digest is None:
        raise ExperimentError("config.data.cache: only a run on latents reads a latent cache; leave it None")
    codec: LatentCodec = frozen.codec
    statistics = {"mean": np.asarray(codec.mean[...]).tolist(), "std": np.asarray(codec.std[...]).tolist()}
    actual = upgrade(cache.provenance())
    expected = provenance(experiment, name_codec_as(_codec_of(actual), codec), statistics)
    if lines := other_values(actual, expected, "this run"):
        raise ExperimentError(
            f"latent cache {cache.directory} was not made for this run; these fields differ:\n"
            + "\n".join(lines)
            + "\nencode again: dit-video encode --config ... --overwrite"
        )


def _codec_of(provenance: Mapping[str, Any]) -> str | None:
    """Digest of the codec that a cache says it was made with."""
    codec = provenance.get("codec")
    return codec if isinstance(codec, str) else None


def provenance(experiment: Experiment, digest: str, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the contents of a latent cache for `experiment`: codec, statistics, how clips are cut, source."""
    return {
        "codec": digest,
        "statistics": {"mean": list(statistics["mean"]), "std": list(statistics["std"])},
        "clips": to_json(experiment.data.clips),
        "source": experiment.data.source.info().digest,
        # Of caches from before there were shapes nothing is compared.
        **({"shapes": [list(shape.clip) for shape in shapes]} if (shapes := experiment.data.shapes) else {}),
    }


def _chunks(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    iterator = iter(clips)
    while rows := list(itertools.islice(iterator, size)):
        yield rows
