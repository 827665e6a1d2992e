"""User cache folder, outside of any run: it may be deleted at any moment, and is rebuilt."""

import contextlib
import functools
import os
import stat
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """$XDG_CACHE_HOME/dit_video, or below ~/.cache where that is not set; of a user without a home, below /tmp."""
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "dit_video"
    try:
        return Path.home() / ".cache" / "dit_video"
    except RuntimeError:  # neither HOME nor an entry in passwd, as where a container is run as some number
        return _own_temporary()


@functools.cache
def _own_temporary() -> Path:
    """A folder for temporary files that nobody else can write to: compiled programs that are found there are run."""
    folder = Path(tempfile.gettempdir()) / f"dit_video-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    with contextlib.suppress(OSError):
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
    return Path(tempfile.mkdtemp(prefix="dit_video-"))
