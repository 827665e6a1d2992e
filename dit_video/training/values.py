"""How long a run trains, what it logs and saves when, and what a step amounts to."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Trace these steps, counted from the first step after compilation, into `folder`."""

    folder: str
    first: int = 3
    num_steps: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to do what.

    Attributes:
        num_steps: the run ends after this many steps.
        log_every: steps between fetching metrics from the device; every step's metrics are recorded.
        save_every: steps between checkpoints; the last step is always saved.
    """

    num_steps: int
    log_every: int = 50
    save_every: int = 1000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"Schedule.{field.name}={getattr(self, field.name)}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one step amounts to, for rates.

    Attributes:
        clips: clips in the global batch.
        tokens: tokens in the global batch, where the network has tokens.
        flops: model FLOPs of forward and backward of the global batch.
        peak: FLOP/s of all devices together at their dense peak, where known.
    """

    clips: int
    tokens: int | None
    flops: int
    peak: float | None

    def rates(self, steps: int, seconds: float, waited: float) -> dict[str, float]:
        rates = {
            "clips_per_second": steps * self.clips / seconds,
            "flops_per_second": steps * self.flops / seconds,
            "data_wait_share": waited / seconds,
        }
        if self.tokens is not None:
            rates["tokens_per_second"] = steps * self.tokens / seconds
        if self.peak is not None:
            rates["mfu"] = rates["flops_per_second"] / self.peak
        return rates
