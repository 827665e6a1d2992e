"""FVD of samples against held-out clips, beside yardsticks measured alike, as a card.

Unterthiner et al., "Towards Accurate Generative Models of Video" (1812.01717): the Frechet distance of I3D logits.
A number without its protocol says nothing, so it never leaves this file without one.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from dit_video.checkpoint import weights_digest
from dit_video.data.batch import Batch, Split
from dit_video.evaluation.card import make_card
from dit_video.evaluation.distance import measure
from dit_video.evaluation.features import Extractor, Pool, cached
from dit_video.evaluation.i3d import I3DLogits
from dit_video.evaluation.monitor import rows
from dit_video.evaluation.neighbours import diversity, nearest, novelty
from dit_video.progress import counted
from dit_video.tasks.task import EvaluationData, Report, Subject, clip_keys

NUM_SHOWN = 8
"""Samples drawn above their nearest training clips."""

Video = UInt8[np.ndarray, "n T H W 3"]
Features = Float[np.ndarray, "N D"]
Others = Callable[[], Mapping[str, Video]]
"""Other versions of the samples' clips by name, made only when asked for."""


@runtime_checkable
class Judged(Protocol):
    """Where samples come from: a run makes them, or another program has written them."""

    def batches(self, num_clips: int, batch_size: int) -> Iterator[tuple[Video, Others]]:
        """The samples 0 .. num_clips - 1."""
        ...

    def pick(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Video:
        """Some of these samples once more."""
        ...

    def describe(self, num_clips: int) -> dict[str, Any]:
        """What a card says of the subject."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FVD:
    """Judges samples by FVD.

    Attributes:
        num_clips: clips of each set. The bias of FVD falls as 1 / num_clips; 2048 is the usual number.
        num_frames: the first so many frames of each clip are judged; 16 is the usual number, I3D needs 9.
        extractor: the network whose features are compared; FVD means I3D's logits.
        yardsticks: also measure, against the same held-out clips, training clips, each clip's first frame held still,
            held-out clips through the codec, and the samples with their frames shuffled; the samples against training
            clips; and look for the training clip that is nearest to each sample.
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

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        return self.judge(Generated(subject, data, seed), data, subject.mesh)

    def judge(self, judged: Judged, data: EvaluationData, mesh: Mesh) -> Report:
        """Measures samples against the held-out clips of `data`, on `mesh`.

        Raises:
            ValueError: clips of fewer frames than are judged, or not as many clips as are judged.
        """
        if data.shape[0] < self.num_frames:
            raise ValueError(
                f"FVD.num_frames={self.num_frames}: clips have {data.shape[0]} frames; judge no more than that"
            )
        pool = Pool(self.extractor, mesh, num_frames=self.num_frames, batch_size=self.batch_size)
        held_out = self._real(pool, data, Split.HELD_OUT)
        made = self._made(pool, judged)
        samples = made.pop("samples")
        companions, yardsticks, measures, media = {}, {}, {}, {}
        if self.yardsticks:
            companions["samples, frames shuffled"] = measure(made.pop("samples, frames shuffled"), held_out)
            yardsticks = {name: measure(features, held_out) for name, features in made.items()}
            yardsticks["first frame held still"] = measure(self._real(pool, data, Split.HELD_OUT, still=True), held_out)
            measures["diversity"] = diversity(samples, held_out)
        if self.yardsticks and Split.TRAIN in data.splits:
            training = self._real(pool, data, Split.TRAIN)
            yardsticks["training clips"] = measure(training, held_out)
            companions["samples against training clips"] = measure(samples, training)
            measures["novelty"] = novelty(samples, held_out, training)
            media["nearest"] = self._nearest(judged, data, samples, training)
        card = make_card(
            metric=self.extractor.metric,
            distance=measure(samples, held_out),
            protocol=self._protocol(data),
            subject=judged.describe(self.num_clips),
            companions=companions,
            yardsticks=yardsticks,
            measures=measures,
        )
        return Report(scalars=_scalars(self.extractor.metric.lower(), card), media=media, cards={"fvd": card})

    def _real(self, pool: Pool, data: EvaluationData, split: Split, *, still: bool = False) -> Features:
        """Features of real clips, or of their first frames held still: extracted once for as long as they are kept."""

        def extract() -> Features:
            found, title = [], f"real clips ({split})" if not still else "first frames held still"
            batches = data.batches(split, self.num_clips, self.batch_size)
            for batch, valid in counted(batches, title, total=self.num_clips, size=lambda item: item[1]):
                video = np.asarray(batch.require_video())[:valid]
                found.append(pool.features(np.repeat(video[:, :1], video.shape[1], axis=1) if still else video))
            return np.concatenate(found)

        return cached({**self._protocol(data, split), "still": still, "decoder": version("av")}, extract)

    def _made(self, pool: Pool, judged: Judged) -> dict[str, Features]:
        """Features of the samples, of the same with their frames shuffled, and of what comes with them."""
        found: dict[str, list[Features]] = defaultdict(list)
        batches = judged.batches(self.num_clips, self.batch_size)
        first = 0
        for samples, others in counted(batches, "samples", total=self.num_clips, size=lambda item: len(item[0])):
            found["samples"].append(pool.features(samples))
            if self.yardsticks:
                shuffled = shuffle_frames(samples[:, : self.num_frames], range(first, first + len(samples)))
                found["samples, frames shuffled"].append(pool.features(shuffled))
                for name, video in others().items():
                    found[name].append(pool.features(video))
            first += len(samples)
        return {name: np.concatenate(chunks) for name, chunks in found.items()}

    def _nearest(
        self, judged: Judged, data: EvaluationData, samples: Features, training: Features
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """The samples that lie nearest to a training clip, above those training clips.

        No video was kept, so both are made again.
        """
        index, distance = nearest(samples, training)
        shown = np.argsort(distance)[:NUM_SHOWN]
        made = judged.pick(shown, self.num_clips, self.batch_size)
        learnt = pick(data, Split.TRAIN, index[shown], self.num_clips, self.batch_size)
        return rows(made, np.asarray(learnt.require_video()))

    def _protocol(self, data: EvaluationData, split: Split = Split.HELD_OUT) -> dict[str, Any]:
        return {
            **data.protocol,
            **self.extractor.protocol(),
            "split": split.value,
            "content": data.digest(split, self.num_clips),
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
            "fps": data.fps,
        }


class Generated:
    """Samples of a run: clip i is made for the condition of held-out clip i from noise f(seed, i)."""

    def __init__(self, subject: Subject, data: EvaluationData, seed: int):
        self._subject, self._data, self._seed = subject, data, seed

    def batches(self, num_clips: int, batch_size: int) -> Iterator[tuple[Video, Others]]:
        size = self._subject.batch_size(batch_size)
        for number, (batch, valid) in enumerate(self._data.batches(Split.HELD_OUT, num_clips, size)):
            keys = clip_keys(self._seed, range(number * size, (number + 1) * size))
            made = self._subject.generate(batch, keys, self._data.shape)[:valid]
            yield (
                made,
                lambda batch=batch, valid=valid: {"codec reconstruction": self._subject.reconstruct(batch)[:valid]},
            )

    def pick(self, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Video:
        # As many rows as before, so that nothing is compiled again.
        size = self._subject.batch_size(max(batch_size, len(clips)))
        wanted = np.resize(clips, size)
        batch = pick(self._data, Split.HELD_OUT, wanted, num_clips, batch_size)
        return self._subject.generate(batch, clip_keys(self._seed, wanted), self._data.shape)[: len(clips)]

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


def pick(data: EvaluationData, split: Split, clips: Int[np.ndarray, "n"], num_clips: int, batch_size: int) -> Batch:
    """Clips of a split by their numbers among `num_clips`, as one batch."""
    found: dict[int, Batch] = {}
    for number, (batch, valid) in enumerate(data.batches(split, num_clips, batch_size)):
        first = number * batch_size
        for i in set(clips.tolist()) & set(range(first, first + valid)):
            found[i] = jax.tree.map(lambda x, row=i - first: x[row], batch)
    return jax.tree.map(lambda *rows: np.stack(rows), *[found[i] for i in clips.tolist()])


def shuffle_frames(video: Video, clips: Sequence[int]) -> Video:
    """Each clip with its own frames in another order, which for clip number i is a function of i alone."""
    orders = [np.random.default_rng(i).permutation(video.shape[1]) for i in clips]
    return np.stack([clip[order] for clip, order in zip(video, orders)])


def _scalars(name: str, card: Mapping[str, Any]) -> dict[str, float]:
    scalars = {name: card["value"], f"{name} kernel": card["kernel_distance"]}
    for part in ("yardsticks", "companions"):
        scalars |= {f"{name} {label}": found["value"] for label, found in card[part].items()}
    return scalars | dict(card["measures"])
