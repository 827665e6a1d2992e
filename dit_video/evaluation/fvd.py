"""FVD of a run's samples against held-out clips, beside yardsticks measured alike, as a card.

Unterthiner et al., "Towards Accurate Generative Models of Video" (1812.01717): the Frechet distance of I3D logits.
A number without its protocol says nothing, so it never leaves this file without one.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import track

from dit_video.checkpoint import weights_digest
from dit_video.data.batch import Split
from dit_video.evaluation import i3d, i3d_weights
from dit_video.evaluation.card import make_card
from dit_video.evaluation.frechet import frechet_terms
from dit_video.evaluation.i3d import ResizeRule
from dit_video.sharding import place, replicated
from dit_video.tasks.task import EvaluationData, Report, Subject, clip_keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class FVD:
    """Judges samples by FVD.

    Attributes:
        num_clips: clips of each set. The bias of FVD falls as 1 / num_clips; 2048 is the usual number.
        num_frames: the first so many frames of each clip are judged; 16 is the usual number, I3D needs 9.
        yardsticks: also measure training clips, each clip's first frame held still, and held-out clips through the
            codec, against the same held-out clips.
    """

    every: int
    num_clips: int = 2048
    num_frames: int = 16
    batch_size: int = 16
    resize: ResizeRule = ResizeRule.TF1
    yardsticks: bool = True

    def __post_init__(self):
        if self.num_frames < i3d.MIN_FRAMES:
            raise ValueError(f"FVD.num_frames={self.num_frames}: I3D needs at least {i3d.MIN_FRAMES}")
        if self.num_clips < 2:
            raise ValueError(f"FVD.num_clips={self.num_clips}: must be at least 2; 2048 is the usual number")

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        if data.shape[0] < self.num_frames:
            raise ValueError(
                f"FVD.num_frames={self.num_frames}: clips have {data.shape[0]} frames; judge no more than that"
            )
        features: dict[str, list[Float[np.ndarray, "n 400"]]] = defaultdict(list)
        extract = _Extractor(self, subject)
        for name, video in self._clips(subject, data, seed):
            features[name].append(extract(video))
        pooled = {name: np.concatenate(rows) for name, rows in features.items()}
        held_out = pooled.pop("held-out")
        terms = {name: frechet_terms(rows, held_out) for name, rows in pooled.items()}
        samples = terms.pop("samples")
        card = make_card(
            metric="FVD",
            terms=samples,
            protocol=self._protocol(data),
            subject=self._subject(subject, seed),
            yardsticks=terms,
        )
        scalars = {"fvd": samples.value} | {f"fvd {name}": t.value for name, t in terms.items()}
        return Report(scalars=scalars, cards={"fvd": card})

    def _clips(
        self, subject: Subject, data: EvaluationData, seed: int
    ) -> Iterator[tuple[str, UInt8[np.ndarray, "n T H W 3"]]]:
        """Clips by the set they belong to; rows that only fill up a batch are dropped here."""
        steps, first = -(-self.num_clips // self.batch_size), 0
        batches = data.batches(Split.HELD_OUT, self.num_clips, self.batch_size)
        for batch, valid in track(batches, "FVD", total=steps, transient=True):
            video = np.asarray(batch.require_video())[:valid]
            yield "held-out", video
            keys = clip_keys(seed, first, self.batch_size)
            yield "samples", subject.generate(batch, keys, data.shape)[:valid]
            first += valid
            if self.yardsticks:
                yield "codec reconstruction", subject.reconstruct(batch)[:valid]
                yield "first frame held still", np.repeat(video[:, :1], data.shape[0], axis=1)
        if self.yardsticks:
            batches = data.batches(Split.TRAIN, self.num_clips, self.batch_size)
            for batch, valid in track(batches, "FVD of training clips", total=steps, transient=True):
                yield "training clips", np.asarray(batch.require_video())[:valid]

    def _protocol(self, data: EvaluationData) -> dict[str, Any]:
        return {
            **data.protocol,
            "split": Split.HELD_OUT.value,
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
            "fps": data.fps,
            "resize": self.resize.value,
            "weights": i3d_weights.SHA256,
        }

    def _subject(self, subject: Subject, seed: int) -> dict[str, Any]:
        return {
            **subject.description,
            "step": subject.step,
            "weights": "ema" if subject.ema else "raw",
            "digest": weights_digest(subject.params),
            "seed": seed,
        }


class _Extractor:
    """I3D on the subject's mesh."""

    def __init__(self, fvd: FVD, subject: Subject):
        self._fvd, self._mesh = fvd, subject.mesh
        definition, weights = i3d.pretrained()
        self._definition, self._weights = definition, jax.device_put(weights, replicated(subject.mesh))

    def __call__(self, video: UInt8[np.ndarray, "n T H W 3"]) -> Float[np.ndarray, "n 400"]:
        size = self._fvd.batch_size
        # One shape is compiled: a short last batch is filled up with its last clip.
        rows = np.minimum(np.arange(size), len(video) - 1)
        placed = place(video[rows, : self._fvd.num_frames], self._mesh)
        with jax.set_mesh(self._mesh):
            found = i3d.forward(self._definition, self._weights, placed, self._fvd.resize)
        return np.asarray(found)[: len(video)]
