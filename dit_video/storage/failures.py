"""Storage failures: which errors are of the store and not of a program, their remedies, and which are retried."""

import contextlib
import errno
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

Result = TypeVar("Result")

# TensorStore raises ValueError with the code of a status in front.
_STATUS = re.compile(
    "(RESOURCE_EXHAUSTED|OUT_OF_RANGE|UNAVAILABLE|PERMISSION_DENIED|NOT_FOUND|FAILED_PRECONDITION|DEADLINE_EXCEEDED"
    "|ABORTED|UNAUTHENTICATED|DATA_LOSS|INTERNAL|UNKNOWN): "
)
# Of these, those that it gives to bytes that were read and do not fit, and to files that are not there. For some of the
# former it has no status. Where an errno is behind it, it says which; a request over HTTP has an answer.
_UNFIT = re.compile("(DATA_LOSS|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION|NOT_FOUND): |Error (open|read)ing ")
_ERRNO = re.compile(r"\[os_error_code='(\d+)'\]")
_HTTP = "[http_response_"
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ABSENT_ERRNOS = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR}
# What a parser raises where it meets something else than was written.
_PARSING = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, StopIteration)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|Forbidden|Invalid Credentials|credentials|Anonymous caller|RefreshError"
    "|DefaultCredentials|Reauthentication|invalid_grant"
)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)

READ_PAUSES: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before a read that has failed is tried again, one after the other: a minute. Then the error is raised."""

LAST_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""The same for the last checkpoint of a run. A job that is to be ended has minutes, not hours."""


class Vanished(OSError):
    """A folder has vanished: it was moved or deleted, or its file system is no longer mounted."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def raised_by_stores() -> tuple[type[Exception], ...]:
    """Exception classes that a failing store may raise, those of bucket libraries included where these are imported."""
    foreign = (
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "ChecksumError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("google.api_core.exceptions", "GoogleAPIError"),
    )
    return OSError, ValueError, *(getattr(sys.modules[m], name) for m, name in foreign if m in sys.modules)


class BucketFailed(OSError):
    """A failure of a bucket, raised by its library as something else than an OSError."""


class Unreadable(OSError):
    """What is stored could not be read, so nothing is known of it."""


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Converts errors of bucket libraries to OSError, or ValueError, inside the block."""
    try:
        yield
    except raised_by_stores() as error:
        if isinstance(error, OSError | ValueError):
            raise
        raise BucketFailed(f"{type(error).__name__}: {error}") from error


def fault(error: BaseException) -> BaseException | None:
    """The storage failure among the causes of an error; None where there is none, as for a mistake in a program."""
    for cause in chain(error):
        if isinstance(cause, raised_by_stores()) and (not isinstance(cause, ValueError) or _of_tensorstore(cause)):
            return cause
    return None


def _of_tensorstore(error: ValueError) -> bool:
    """Whether a ValueError is TensorStore's for a failed request; one that the server calls wrong has no status."""
    text = str(error)
    return bool(_STATUS.match(text)) or _HTTP in text or "[tensorstore_spec" in text


def _of_orbax(error: ValueError) -> bool:
    """Whether Orbax itself has raised this, which it does for JSON with other keys or values than it writes."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("orbax.")


def advice(error: BaseException) -> str:
    """The remedy for a storage failure, in words."""
    text = str(error)
    number = next((c.errno for c in chain(error) if isinstance(c, OSError) and c.errno), None)
    if number in _FULL or any(os.strerror(n) in text for n in _FULL):
        return "free space there, or raise the quota"
    if number in _LOCKED or any(os.strerror(n) in text for n in _LOCKED):
        return "make the folder writable again"
    if number == errno.EFBIG or os.strerror(errno.EFBIG) in text:
        return "raise the limit of the size of files (ulimit -f)"
    if _NO_ACCESS.search(text):
        return "let this machine write to the bucket (gcloud auth application-default login, or a service account)"
    return "look whether the file system is there and answers"


def is_unfit(error: BaseException) -> bool:
    """Whether an error in reading says that what was read does not fit, or that a file of it is not there.

    That alone can be damage. Whatever else goes wrong, and what is said in words that are not known here, is not.
    """
    if isinstance(error, OSError):
        return isinstance(error, _ABSENT)
    text = str(error)
    if not isinstance(error, ValueError) or isinstance(error, _PARSING):
        return isinstance(error, _PARSING)
    if not _of_tensorstore(error):
        return _of_orbax(error)
    errnos = {int(number) for number in _ERRNO.findall(text)}
    return bool(_UNFIT.match(text)) and errnos <= _ABSENT_ERRNOS and _HTTP not in text


def read_patiently(read: Callable[[], Result], warn: Callable[[str], None]) -> Result:
    """Retries `read` where the store fails, with growing pauses and a warning each time: for a minute (READ_PAUSES).

    What is not there is not waited for.
    """
    for pause in READ_PAUSES:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            warn(f"cannot read: {error}; trying again in {pause:.0f} s")
        time.sleep(pause)
    return read()


class Unfailing:
    """Wrapper of stdout or stderr that drops output instead of raising where its file is on a full disk."""

    def __init__(self, stream: TextIO | io.TextIOBase):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
