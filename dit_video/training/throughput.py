"""Throughput of training: clips, tokens and FLOPs per second, and model FLOPs utilisation (MFU)."""

import dataclasses
import time
from collections.abc import Sequence

import jax
from rich.filesize import decimal


@dataclasses.dataclass(frozen=True)
class Work:
    """What one training step processes, or some: clips, tokens and FLOPs, from which throughput and MFU follow.

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

    def __add__(self, other: "Work") -> "Work":
        """That of both, on the same devices."""
        tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        return Work(self.clips + other.clips, tokens, self.flops + other.flops, self.peak)

    def rates(self, seconds: float, waited: float) -> dict[str, float]:
        """Clips, tokens and FLOPs per second where this took so long, MFU, and the share of time waited for data."""
        rates = {
            "clips_per_second": self.clips / seconds,
            "flops_per_second": self.flops / seconds,
            "data_wait_share": waited / seconds,
        }
        if self.tokens is not None:
            rates["tokens_per_second"] = self.tokens / seconds
        if self.peak is not None:
            rates["mfu"] = rates["flops_per_second"] / self.peak
        return rates


def device_memory() -> dict[str, float]:
    """Bytes in use on the fullest device of this process, now and at most so far; empty where devices do not say."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"bytes_in_use": "device_bytes", "peak_bytes_in_use": "device_bytes_peak"}
    return {
        ours: float(max(one[theirs] for one in stats))
        for theirs, ours in names.items()
        if stats and all(theirs in one for one in stats)
    }


def step_memory(compiled: Sequence[jax.stages.Compiled]) -> str | None:
    """One line: bytes that a compiled step takes on one device, as its compiler has it; None where it does not say.

    Of several, for batches of other shapes, that which takes the most.
    """
    of_all = [stats for program in compiled if (stats := program.memory_analysis()) is not None]
    if not of_all:
        return None
    stats = max(of_all, key=lambda stats: stats.argument_size_in_bytes + stats.temp_size_in_bytes)
    most = "at most " if len(compiled) > 1 else ""
    return (
        f"memory of a step on each device: {most}arguments {decimal(stats.argument_size_in_bytes)}, temporary "
        f"{decimal(stats.temp_size_in_bytes)}, output {decimal(stats.output_size_in_bytes)}, of which "
        f"{decimal(stats.alias_size_in_bytes)} take the place of arguments"
    )


class Window:
    """Steps over which throughput is measured; evaluation and compilation stay outside of it.

    Attributes:
        work: of the steps in it so far; None of none.
    """

    def __init__(self, waited: float):
        """`waited` are the seconds that were waited for data until now."""
        self.work: Work | None = None
        self._begin, self._waited = time.perf_counter(), waited

    def add(self, work: Work) -> None:
        """Adds a step that does so much."""
        self.work = work if self.work is None else self.work + work

    def rates(self, waited: float) -> dict[str, float]:
        """Rates of its steps until now; none without steps. `waited` are the seconds waited for data until now."""
        seconds = time.perf_counter() - self._begin
        return {} if self.work is None else self.work.rates(seconds, waited - self._waited)
