"""Throughput of training: clips, tokens and FLOPs per second, and model FLOPs utilisation (MFU)."""

import dataclasses
import time

import jax
from rich.filesize import decimal


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
        """Clips, tokens and FLOPs per second over `steps` steps, MFU, and the share of time waited for data."""
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


def device_memory() -> dict[str, float]:
    """Bytes in use on the fullest device of this process, now and at most so far; empty where devices do not say."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"bytes_in_use": "device_bytes", "peak_bytes_in_use": "device_bytes_peak"}
    return {
        ours: float(max(one[theirs] for one in stats))
        for theirs, ours in names.items()
        if stats and all(theirs in one for one in stats)
    }


def step_memory(compiled: jax.stages.Compiled) -> str | None:
    """One line: bytes that a compiled step takes on one device, as its compiler has it; None where it does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    reused = stats.alias_size_in_bytes
    return (
        f"memory of a step on each device: arguments {decimal(stats.argument_size_in_bytes)}, temporary "
        f"{decimal(stats.temp_size_in_bytes)}, output {decimal(stats.output_size_in_bytes)}, of which "
        f"{decimal(reused)} take the place of arguments"
    )


class Window:
    """Steps over which throughput is measured; evaluation and compilation stay outside of it.

    Attributes:
        step: the last one before it.
        compiling: whether its step is the first of the session, most of which is compilation.
    """

    def __init__(self, step: int, waited: float, *, compiling: bool = True):
        """`waited` are the seconds that were waited for data until now."""
        self.step, self.compiling = step, compiling
        self._begin, self._waited = time.perf_counter(), waited

    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._begin

    def measure(self, step: int, waited: float) -> tuple[int, float, float]:
        """Steps until `step`, seconds that they took, and seconds of these that were waited for data."""
        return step - self.step, self.seconds(), waited - self._waited
