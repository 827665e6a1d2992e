"""Storage failures: which errors are of the store and not of a program, their remedies, and which are retried."""

import contextlib
import errno
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

Result = TypeVar("Result")

# TensorStore raises ValueError with the code of a status in front.
_STATUS = re.compile(
    "(RESOURCE_EXHAUSTED|OUT_OF_RANGE|UNAVAILABLE|PERMISSION_DENIED|NOT_FOUND|FAILED_PRECONDITION|DEADLINE_EXCEEDED"
    "|ABORTED|UNAUTHENTICATED|DATA_LOSS|INTERNAL|UNKNOWN): "
)
# What may pass by itself: a server that starts again, a network that was cut.
_PASSING = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNREFUSED,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_PASSING_HTTP = frozenset({408, 429, *range(500, 600)})
_PASSING_STATUS = re.compile("UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|Forbidden|Invalid Credentials|credentials|Anonymous caller|RefreshError"
    "|DefaultCredentials|Reauthentication|invalid_grant"
)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)

READ_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before a read that has failed is tried again, one after the other; then the error is raised."""

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
    """A failure of a bucket, raised by its library as something else than an OSError.

    Attributes:
        passing: whether it is transient.
    """

    def __init__(self, error: Exception):
        super().__init__(f"{type(error).__name__}: {error}")
        # Without a code of HTTP there was no answer. Errors of credentials say whether it helps to ask again.
        code = str(getattr(error, "code", None) or 503)
        self.passing = bool(getattr(error, "retryable", code.isdigit() and int(code) in _PASSING_HTTP))


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
    """Converts errors of bucket libraries to OSError, or ValueError, inside the block."""
    try:
        yield
    except raised_by_stores() as error:
        if isinstance(error, OSError | ValueError):
            raise
        raise BucketFailed(error) from error


def fault(error: BaseException) -> BaseException | None:
    """The storage failure among the causes of an error; None where there is none, as for a mistake in a program."""
    for cause in chain(error):
        if isinstance(cause, raised_by_stores()) and (not isinstance(cause, ValueError) or _of_tensorstore(cause)):
            return cause
    return None


def _of_tensorstore(error: ValueError) -> bool:
    """Whether a ValueError is TensorStore's for a failed request; one that the server calls wrong has no status."""
    return bool(_STATUS.match(str(error))) or "[http_response_" in str(error)


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


def passes(error: BaseException) -> bool:
    """Whether a storage failure is transient and worth a retry."""
    if isinstance(error, Vanished | TimeoutError):
        return True
    if isinstance(error, BucketFailed):
        return error.passing
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return bool(_PASSING_STATUS.match(str(error)))


def read_patiently(read: Callable[[], Result], warn: Callable[[str], None]) -> Result:
    """Retries `read` on transient storage failures, with growing pauses and a warning each time."""
    for pause in READ_PAUSES:
        try:
            return read()
        except (OSError, ValueError) as error:
            if not passes(error):
                raise
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
