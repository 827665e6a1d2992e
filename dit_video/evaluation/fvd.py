"""FVD of samples against held-out clips, beside yardsticks measured alike, as a card.

Unterthiner et al., "Towards Accurate Generative Models of Video" (1812.01717): the Frechet distance of I3D logits.
A number without its protocol says nothing, so it never leaves this file without one.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from dit_video.data.batch import Batch
from dit_video.data.record import Split
from dit_video.evaluation.card import finished, make_card
from dit_video.evaluation.distance import measure
from dit_video.evaluation.evaluators import rows
from dit_video.evaluation.features import Extractor, Pool, cached
from dit_video.evaluation.i3d import I3DLogits
from dit_video.evaluation.neighbours import diversity, nearest, novelty
from dit_video.progress import counted
from dit_video.tasks.evaluator import EvaluationData, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.weights.digest import weights_digest

NUM_SHOWN = 8
"""Samples drawn above their nearest training clips."""

Video = UInt8[np.ndarray, "n T H W 3"]
Features = Float[np.ndarray, "N D"]


@runtime_checkable
class SampleSource(Protocol):
    """Where samples come from: a run makes them, or another program has written them."""

    @property
    def paired(self) -> bool:
        """Whether sample i is held-out clip i made again. Pairs share their bias, so that a distance of pairs is far
        smaller than one of independent clips, and the two are never ranked together.
        """
        ...

    def batches(self, num_clips: int, batch_size: int) -> Iterator[Video]:
        """The samples 0 .. num_clips - 1."""
        ...

    def numbered(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Video:
        """Some of these samples once more."""
        ...

    @property
    def reconstruct(self) -> Callable[[Batch], Video] | None:
        """Real clips through the codec that the samples came through; None where none is known."""
        ...

    def describe(self, num_clips: int) -> dict[str, Any]:
        """What a card says of the subject."""
        ...

    def notes(self, data: EvaluationData) -> list[str]:
        """What a reader of the card must know, such as samples of another frame rate than the real clips."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FVD:
    """Judges samples by FVD.

    Attributes:
        num_clips: clips of each set. The bias of FVD falls as 1 / num_clips; 2048 is the usual number.
        num_frames: the first so many frames of each clip are judged; 16 is the usual number, I3D needs 9.
        extractor: the network whose features are compared; FVD means I3D's logits.
        yardsticks: also measure, against the same held-out clips, training clips as they are, with their first frame
            held still, and through the codec, and the samples with their frames shuffled; the samples against training
            clips; and look for the training clip that is nearest to each sample. Training clips are, like samples,
            other clips than those they are measured against, and have the bias that samples have.
    """

    every: int
    num_clips: int = 2048
    num_frames: int = 16
    batch_size: int = 16
    extractor: Extractor = I3DLogits()
    yardsticks: bool = True

    def __post_init__(self):
        if self.num_frames < self.extractor.min_frames:
            raise ValueError(
                f"FVD.num_frames={self.num_frames}: {self.extractor.metric} needs at least {self.extractor.min_frames}"
            )
        if self.num_clips < 2:
            raise ValueError(f"FVD.num_clips={self.num_clips}: must be at least 2; 2048 is the usual number")
        if self.batch_size < 1:
            raise ValueError(f"FVD.batch_size={self.batch_size}: must be at least 1")

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        return self.judge(Generated(subject, data, seed), data, subject.mesh)

    def check(self, data: EvaluationData) -> None:
        """Raises ValueError where clips of `data` have fewer frames than are judged."""
        if data.shape[0] < self.num_frames:
            raise ValueError(
                f"FVD.num_frames={self.num_frames}: clips have {data.shape[0]} frames; judge no more than that"
            )

    def judge(self, judged: SampleSource, data: EvaluationData, mesh: Mesh) -> Report:
        """Measures samples against the held-out clips of `data`, on `mesh`.

        Raises:
            ValueError: clips of fewer frames than are judged, or not as many clips as are judged.
        """
        self.check(data)
        pool = Pool(self.extractor, mesh, num_frames=self.num_frames, batch_size=self.batch_size)
        held_out = self._real(pool, data, Split.HELD_OUT)
        samples, shuffled = self._samples(pool, judged)
        card = make_card(
            metric=self.extractor.metric,
            distance=measure(samples, held_out),
            protocol={**self._protocol(data, Split.HELD_OUT), "pairs": judged.paired},
            subject=judged.describe(self.num_clips),
            references=dict(data.references),
            notes=judged.notes(data),
        )
        media = {}
        if self.yardsticks:
            card["companions"]["samples, frames shuffled"] = measure(shuffled, held_out).as_json()
            card["measures"]["diversity"] = diversity(samples, held_out)
        if self.yardsticks and Split.TRAIN in data.splits:
            training = self._real(pool, data, Split.TRAIN)
            self._add_yardsticks(card, pool, judged, data, held_out, training)
            card["companions"]["samples against training clips"] = measure(samples, training).as_json()
            media["nearest"] = self._add_nearest(card, pool, judged, data, samples, held_out, training)
        return Report(scalars=_scalars(card), media=media, cards={"fvd": finished(card)})

    def _add_yardsticks(
        self,
        card: dict[str, Any],
        pool: Pool,
        judged: SampleSource,
        data: EvaluationData,
        held_out: Features,
        training: Features,
    ) -> None:
        card["references"]["training clips"] = data.digest(Split.TRAIN, self.num_clips)
        sets = {
            "training clips": training,
            "training clips, first frame held still": self._real(pool, data, Split.TRAIN, still=True),
        }
        through_codec = self._reconstructed(pool, judged, data)
        if through_codec is not None:
            sets["training clips through the codec"] = through_codec
        card["yardsticks"] |= {name: measure(features, held_out).as_json() for name, features in sets.items()}

    def _add_nearest(
        self,
        card: dict[str, Any],
        pool: Pool,
        judged: SampleSource,
        data: EvaluationData,
        samples: Features,
        held_out: Features,
        training: Features,
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """Puts the nearest training clip of each sample on the card, and draws the nearest of all above each other.

        No video was kept, so what is drawn is made again.
        """
        index, distance = nearest(samples, training)
        card["nearest"] = {"among": self.num_clips, "clip": index.tolist(), "distance": distance.tolist()}
        measured = novelty(samples, held_out, training)
        if measured is None:
            card["notes"].append("held-out clips are training clips: novelty says nothing, nor does this value")
        else:
            card["measures"]["novelty"] = measured
        shown = np.argsort(distance)[:NUM_SHOWN]
        made = judged.numbered(shown, self.num_clips, pool.batch_size)
        learnt = numbered(data, Split.TRAIN, index[shown], self.num_clips, pool.batch_size)
        return rows(made, np.asarray(learnt.require_video()))

    def _real(self, pool: Pool, data: EvaluationData, split: Split, *, still: bool = False) -> Features:
        """Features of real clips, or of their first frames held still: extracted once for as long as they are kept."""

        def extract() -> Features:
            features, title = [], f"real clips ({split})" if not still else "first frames held still"
            for batch, valid in self._batches(data, split, pool, title):
                video = np.asarray(batch.require_video())[:valid]
                features.append(pool.features(np.repeat(video[:, :1], video.shape[1], axis=1) if still else video))
            return np.concatenate(features)

        return cached({**self._protocol(data, split), "still": still, "decoder": version("av")}, extract)

    def _reconstructed(self, pool: Pool, judged: SampleSource, data: EvaluationData) -> Features | None:
        if judged.reconstruct is None:
            return None
        batches = self._batches(data, Split.TRAIN, pool, "clips through the codec")
        return np.concatenate([pool.features(judged.reconstruct(batch)[:valid]) for batch, valid in batches])

    def _batches(self, data: EvaluationData, split: Split, pool: Pool, title: str) -> Iterator[tuple[Batch, int]]:
        batches = data.batches(split, self.num_clips, pool.batch_size)
        return counted(batches, title, total=self.num_clips, size=lambda item: item[1])

    def _samples(self, pool: Pool, judged: SampleSource) -> tuple[Features, Features]:
        """Features of the samples, and of the same with their frames shuffled."""
        features, shuffled, first = [], [], 0
        batches = judged.batches(self.num_clips, pool.batch_size)
        for samples in counted(batches, "samples", total=self.num_clips, size=len):
            features.append(pool.features(samples))
            if self.yardsticks:
                clips = range(first, first + len(samples))
                shuffled.append(pool.features(shuffle_frames(samples[:, : self.num_frames], clips)))
            first += len(samples)
        return np.concatenate(features), np.concatenate(shuffled or features)

    def _protocol(self, data: EvaluationData, split: Split) -> dict[str, Any]:
        """All that decides the features of a split's clips, and so the scale of distances from them."""
        return {
            "content": data.digest(split, self.num_clips),
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
            "fps": data.fps,
            **data.protocol,
            **self.extractor.protocol(),
        }


class Generated:
    """Samples of a run: clip i is made for the condition of held-out clip i from noise f(seed, i)."""

    def __init__(self, subject: Subject, data: EvaluationData, seed: int):
        self._subject, self._data, self._seed = subject, data, seed

    @property
    def paired(self) -> bool:
        return self._subject.paired

    def batches(self, num_clips: int, batch_size: int) -> Iterator[Video]:
        size = self._subject.batch_size(batch_size)
        for number, (batch, valid) in enumerate(self._data.batches(Split.HELD_OUT, num_clips, size)):
            keys = clip_keys(self._seed, range(number * size, (number + 1) * size))
            yield self._subject.generate(batch, keys, self._data.shape)[:valid]

    def numbered(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Video:
        # As many rows as before, so that nothing is compiled again.
        size = self._subject.batch_size(max(batch_size, len(clips)))
        numbers = np.resize(clips, size)
        batch = numbered(self._data, Split.HELD_OUT, numbers, num_clips, batch_size)
        return self._subject.generate(batch, clip_keys(self._seed, numbers), self._data.shape)[: len(clips)]

    @property
    def reconstruct(self) -> Callable[[Batch], Video]:
        return self._subject.reconstruct

    def describe(self, num_clips: int) -> dict[str, Any]:
        del num_clips  # how many were made is the protocol's business
        subject = self._subject
        return {
            **subject.description,
            "step": subject.step,
            "weights": "ema" if subject.ema else "raw",
            "digest": weights_digest(subject.params),
            "seed": self._seed,
        }

    def notes(self, data: EvaluationData) -> list[str]:
        del data  # samples are made in the shape of the clips
        return ["each was made from the very clip it is measured against"] if self.paired else []


def numbered(data: EvaluationData, split: Split, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Batch:
    """Clips of a split by their numbers among `num_clips`, as one batch."""
    rows: dict[int, Batch] = {}
    for number, (batch, valid) in enumerate(data.batches(split, num_clips, batch_size)):
        first = number * batch_size
        for i in set(clips.tolist()) & set(range(first, first + valid)):
            rows[i] = jax.tree.map(lambda x, row=i - first: x[row], batch)
        if len(rows) == len(set(clips.tolist())):
            break
    return jax.tree.map(lambda *clips: np.stack(clips), *[rows[i] for i in clips.tolist()])


def shuffle_frames(video: Video, clips: Sequence[int]) -> Video:
    """Each clip with its own frames in another order, which for clip number i is a function of i alone."""
    orders = [np.random.default_rng(i).permutation(video.shape[1]) for i in clips]
    return np.stack([clip[order] for clip, order in zip(video, orders)])


def _scalars(card: Mapping[str, Any]) -> dict[str, float]:
    name = card["metric"].lower()
    scalars = {name: card["value"], f"{name} kernel": card["kernel_distance"]}
    for part in ("yardsticks", "companions"):
        scalars |= {f"{name} {label}": measured["value"] for label, measured in card[part].items()}
    return scalars | {f"{name} {label}": value for label, value in card["measures"].items()}
