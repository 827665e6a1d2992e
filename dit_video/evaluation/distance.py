"""Distances between two feature sets: Frechet and kernel distance, confidence interval, extrapolation to many clips."""

import dataclasses
from typing import Any

from dit_video.evaluation.frechet import Features, FrechetTerms, frechet_terms, kernel_distance
from dit_video.evaluation.uncertainty import NUM_GROUPS, Extrapolation, Interval, both

KERNEL_BLOCK = 1024
"""Rows of a block of the kernel distance, as in TF-GAN; also bounds its memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """Frechet and kernel distance of a set of clips from another, with uncertainty.

    Attributes:
        terms: the squared Frechet distance in its two terms (FVD, where the features are I3D's logits).
        kernel: the unbiased kernel distance (KVD); about zero for two sets of one distribution at any N.
        interval: covers the expected Frechet distance at this N; None below `NUM_GROUPS` clips.
        limit: the Frechet distance extrapolated to N = infinity; None below `NUM_GROUPS` clips.
    """

    terms: FrechetTerms
    kernel: float
    interval: Interval | None
    limit: Extrapolation | None

    @property
    def value(self) -> float:
        return self.terms.value

    def as_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "interval": None if self.interval is None else self.interval._asdict(),
            "mean_term": self.terms.mean_term,
            "covariance_term": self.terms.covariance_term,
            "kernel_distance": self.kernel,
            "limit": None if self.limit is None else self.limit._asdict() | {"interval": self.limit.interval._asdict()},
        }


def measure(samples: Features, reference: Features) -> Distance:
    """Computes all distances for features `[N D]` of two sets.

    Raises:
        ValueError: as `frechet.frechet_terms`.
    """
    enough = min(len(samples), len(reference)) >= NUM_GROUPS
    interval, limit = both(samples, reference) if enough else (None, None)
    return Distance(
        terms=frechet_terms(samples, reference),
        kernel=kernel_distance(samples, reference, block_size=KERNEL_BLOCK),
        interval=interval,
        limit=limit,
    )
