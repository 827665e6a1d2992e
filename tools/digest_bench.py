"""Benchmark of digests of arrays: today's form against that of before, on the device and by NumPy, in turns.

python -m tools.digest_bench
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.weights import digest

SHAPE = (12, 1024, 2048)
START = (0, 0, 0)
ROUNDS = 7


def main() -> None:
    print(f"| array {list(SHAPE)} | by | today, MB/s | before, MB/s |\n|---|---|---|---|")
    for dtype in (np.dtype(np.float32), np.dtype(jnp.bfloat16)):
        x = np.random.default_rng(0).standard_normal(SHAPE, np.float32).astype(dtype)
        on_device = {"x": jnp.asarray(x)}
        device = f"{jax.devices()[0].device_kind}, compiled"
        ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            device: (lambda a=on_device: digest.texts_of(a), lambda a=on_device: digest.sums_of(a)),
            "NumPy, one core": (
                lambda x=x: digest.digest_part(x, START, SHAPE),
                lambda x=x: digest.weighted_sum_part(x, START),
            ),
        }
        for name, pair in ways.items():
            today, before = (f"{x.nbytes / 1e6 / seconds:.0f}" for seconds in _in_turns(*pair))
            print(f"| {dtype.name} | {name} | {today} | {before} |")


def _in_turns(*ways: Callable[[], object]) -> list[float]:
    """Least seconds of each, measured one after the other in rounds, so that a busy machine is busy for all."""
    for way in ways:
        way()
    least = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for number, way in enumerate(ways):
            began = time.perf_counter()
            way()
            least[number] = min(least[number], time.perf_counter() - began)
    return least


if __name__ == "__main__":
    main()
