"""Extras of this package in messages, always by the one command that installs them.

The package is on no index, so that a command that named it there would install whatever somebody else has put there:
an extra is installed from a checkout.
"""


def install(*extras: str) -> str:
    """The command that installs extras of pyproject.toml, with the folder that it is typed in."""
    return f"pip install -e '.[{','.join(extras)}]' in a checkout of dit_video"
