"""Job submission: a script or manifest, and the program that it is piped to (sbatch, kubectl, bash)."""

import dataclasses
import shutil
import subprocess


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job script or manifest and the program that submits it.

    Attributes:
        text: the script or manifest; ends with a newline.
        program: reads the text from standard input.
        tool: what must be installed on this machine.
    """

    text: str
    program: tuple[str, ...]
    tool: str


def submit(submission: Submission) -> int:
    """Submits a job; returns the exit code of the submitting program.

    Raises:
        ValueError: the tool is not on this machine.
    """
    if shutil.which(submission.tool) is None:
        raise ValueError(
            f"{submission.tool} is not on PATH: submit from a machine that has it; "
            "--dry_run prints what would be submitted, to be taken there"
        )
    return subprocess.run(submission.program, input=submission.text, text=True).returncode
