"""dit_video: latent video diffusion transformers in JAX. Importing this package starts nothing.

`from dit_video import Experiment, Denoise, rectified_flow` and all other names of config/names.py import what they name
when they are asked for.
"""

import importlib
from typing import Any

from dit_video.config.names import PUBLIC

__version__ = "0.1.0"
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"dit_video has no public name {name}; config/names.py lists them")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
