"""Numbers of weights that are NaN or infinite, counted while they are read."""

import dataclasses

import numpy as np

from dit_video.weights.names import Source, StoredTensor


def count_not_finite(source: Source, counts: dict[str, int]) -> Source:
    """The same tensors; when one is first read, `counts` gets how many of its numbers are not finite, if any."""
    seen: set[str] = set()

    def counted(name: str, stored: StoredTensor) -> StoredTensor:
        def read() -> np.ndarray:
            values = stored.read()
            if name not in seen:
                seen.add(name)
                if num := values.size - int(np.isfinite(values).sum()):
                    counts[name] = num
            return values

        return dataclasses.replace(stored, read=read)

    return {name: counted(name, stored) for name, stored in source.items()}
