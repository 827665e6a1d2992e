"""Standard streams and open files of a process, put right before a command begins."""

import contextlib
import os
import resource
import sys

# Of a system with no limit at all.
_MANY_FILES = 1 << 16


def prepare() -> None:
    """Opens streams that are closed, lets them print any character, and allows as many open files as the system does.

    Where standard output is closed the next file that is opened gets its number, and whatever a library prints is
    written into that file: a checkpoint, perhaps.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # In the locale of a shell that knows ASCII alone a name may have characters that it cannot print.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MANY_FILES if most == resource.RLIM_INFINITY else min(most, _MANY_FILES)
    if now != resource.RLIM_INFINITY and now < allowed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
