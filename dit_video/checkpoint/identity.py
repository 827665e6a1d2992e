"""Identity of a run in its checkpoints: those of another run in the same folder are refused, not gone on from."""

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from typing import Any


class OtherRun(ValueError):
    """A checkpoint is intact, but of another run, or of another experiment than this run ever had."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Identity of a run, saved in each of its checkpoints.

    Attributes:
        run_id: drawn when the run was begun.
        fingerprint: of its experiment.
        earlier: fingerprints that its experiment had before, which were changed with leave.
    """

    run_id: str
    fingerprint: str
    earlier: tuple[str, ...] = ()

    def record(self) -> dict[str, str]:
        return {"id": self.run_id, "fingerprint": self.fingerprint}

    def check(self, recorded: Any, where: os.PathLike[str]) -> None:
        """Compares the identity in the checkpoint `where` with this one; one from before, None, is not compared.

        Raises:
            OtherRun: says what differs, and what to do.
        """
        if recorded is None:
            return
        if id_of({"run": recorded}) != self.run_id:
            raise OtherRun(
                f"{where}: is a checkpoint of the run {_shown(recorded, 'id')}, and this folder is of the run "
                f"{self.run_id} (run_id in experiment.json); {_REMEDY}"
            )
        if recorded.get("fingerprint") not in (self.fingerprint, *self.earlier):
            raise OtherRun(
                f"{where}: was saved with the experiment {_shown(recorded, 'fingerprint')}, and this run has "
                f"{', '.join((self.fingerprint, *self.earlier))} (fingerprints in experiment.json); {_REMEDY}"
            )


def id_of(metadata: Mapping[str, Any]) -> str | None:
    """The run that a checkpoint's metadata name; None of those from before."""
    run = metadata.get("run")
    run_id = run.get("id") if isinstance(run, Mapping) else None
    return run_id if isinstance(run_id, str) else None


_REMEDY = (
    "bring back this run's own checkpoint and experiment.json; to begin a new run from the averaged weights of "
    "another, use another --workdir with --init_from=RUN"
)


def _shown(recorded: Any, name: str) -> str:
    return reprlib.repr(recorded.get(name) if isinstance(recorded, Mapping) else recorded)
