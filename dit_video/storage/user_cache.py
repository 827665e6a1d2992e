"""User cache folder, outside of any run: it may be deleted at any moment, and is rebuilt."""

import os
from pathlib import Path


def user_cache() -> Path:
    """$XDG_CACHE_HOME/dit_video, or below ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dit_video"
