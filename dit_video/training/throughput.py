"""Throughput of training: clips, tokens and FLOPs per second, and model FLOPs utilisation (MFU)."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one training step processes: clips, tokens and FLOPs, from which throughput and MFU follow.

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
