"""Start of a run from step 0: refused where saves are on record and gone, with the record of an earlier start kept.

A run that was killed before its first save starts again by the same command. One whose checkpoints are missing does
not: a file system that is not mounted, or a folder that was cleared by mistake, would cost all that was learnt.
"""

import re
from collections.abc import Callable
from pathlib import Path

from dit_video.checkpoint.folder import DAMAGED_FOLDER, UNFINISHED, steps_of
from dit_video.checkpoint.writer import SAVES_FILE, save_line
from dit_video.storage.failures import read_patiently
from dit_video.storage.json_lines import read_lines
from dit_video.storage.mirror import address_of
from dit_video.training import events
from dit_video.training.tracker import METRICS_FILE, metrics_line

EARLIER = "earlier_records"
_KEPT = (METRICS_FILE, events.FILE)


class CheckpointsGone(ValueError):
    """A run has saved checkpoints, and none is there."""


def check_not_gone(workdir: Path, warn: Callable[[str], None]) -> None:
    """Compares what is on record of completed saves with the steps that are there; moves and makes nothing.

    Args:
        warn: called where the store does not answer and is asked again.

    Raises:
        CheckpointsGone: saves are on record and no step is complete; says what is there, and how to begin anew.
        OSError: the store does not answer, after a minute.
    """
    steps = steps_of(workdir)
    if read_patiently(steps.complete, warn) or not (saves := saves_on_record(workdir)):
        return
    halves = ", ".join(f"{name} (half-written)" for name in steps.unfinished())
    where = address_of(workdir)
    anew = f"type: mv {workdir} {workdir}.old" if where is None else "use another --workdir"
    raise CheckpointsGone(
        f"{where or workdir}: its checkpoints are gone, so training does not begin anew by itself. On record: "
        f"{'; '.join(saves)}. There: {halves or f'no step in {steps.path}'}. "
        "Is a file system not mounted? Bring them back, and give the same command again; to begin anew at step 0, "
        f"{anew}"
    )


def is_claimed(workdir: Path, warn: Callable[[str], None]) -> bool:
    """Whether a start in this folder came to its first step; one that did not leaves the folder to any experiment.

    Args:
        warn: called where the store does not answer and is asked again.
    """
    if read_patiently(steps_of(workdir).complete, warn) or saves_on_record(workdir):
        return True
    # Those that were set aside when it began again count too: there were steps.
    return bool(read_lines(workdir / METRICS_FILE, metrics_line)) or (workdir / EARLIER).exists()


def saves_on_record(workdir: Path) -> list[str]:
    """What a run folder knows of saves that were completed, in words; empty where there was none."""
    found = []
    lines = read_lines(workdir / SAVES_FILE, save_line)
    if steps := [line["step"] for line in lines if "failed" not in line]:
        found.append(f"{len(steps)} in {SAVES_FILE}, the last of step {steps[-1]}")
    for aside in steps_of(workdir).aside():
        if aside.why != UNFINISHED:
            found.append(f"{DAMAGED_FOLDER}/{Path(aside.folder).name}, set aside ({aside.why})")
    cards = sorted((workdir / "evaluation").glob("step_*.json"))
    if cards and (match := re.match(r"step_0*(\d+)_", cards[-1].name)):
        found.append(f"evaluation/{cards[-1].name}, of step {match[1]}")
    return found


def keep_earlier_record(workdir: Path) -> str | None:
    """Moves the record of a start that came to no save aside, and says so; None where there is none."""
    kept = [workdir / name for name in _KEPT if (workdir / name).is_file() and (workdir / name).stat().st_size]
    if not kept:
        return None
    last = max((line["step"] for line in read_lines(workdir / METRICS_FILE, metrics_line)), default=0)
    above = workdir / EARLIER
    folder = above / str(1 + len(list(above.glob("*"))))
    folder.mkdir(parents=True)
    for file in kept:
        file.rename(folder / file.name)
    return (
        f"the run ended at step {last}, before its first save was complete: it starts again from step 0; its record "
        f"until then is kept in {folder}"
    )
