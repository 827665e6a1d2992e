"""Extras of this package in messages, always by the one command that installs them.

The package is on no index, so that a command that named it there would install whatever somebody else has put there:
an extra is installed from a checkout.
"""

import importlib.util
from collections.abc import Sequence

from dit_video.config.user_file import ExperimentError


def require(libraries: Sequence[str], extra: str, what: str) -> None:
    """Raises ExperimentError where a library of an extra, which `what` needs, is not installed."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise ExperimentError(f"{library} is not installed; {what} needs the extra {extra}: {install(extra)}")


def install(*extras: str) -> str:
    """The command that installs extras of pyproject.toml, with the folder that it is typed in."""
    return f"pip install -e '.[{','.join(extras)}]' in a checkout of dit_video"
