"""Where the paths of a run's record lead: from any folder, and after the run was moved together with what they name.

experiment.json keeps paths as they were written, and beside them, as "places", the folder that the run was started in
and that of the run itself, both at that time. So a path is known relative to either.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_video.config.json_file import read_object
from dit_video.config.paths import with_paths
from dit_video.experiment import Experiment
from dit_video.storage.mirror import address_of

# Field of experiment.json.
PLACES = "places"
_STARTED_IN, _RUN = "started_in", "run"


def places_now(workdir: Path) -> dict[str, str | None]:
    """The folder that this process was started in and that of the run, for its record; None of a run in a bucket."""
    run = None if address_of(workdir) is not None else os.path.abspath(workdir)
    return {_STARTED_IN: os.getcwd(), _RUN: run}


def located(experiment: Experiment, record: Path) -> Experiment:
    """The experiment of a run with its paths as they lead from here.

    A path is looked for where it was relative to the run, then where it was; one that was written whole in the other
    order. One that is at neither stays as it was written, and so do all of a record from before places were kept.

    Args:
        record: the experiment.json that it was read from.
    """
    places = read_object(record).get(PLACES)
    if not isinstance(places, Mapping) or not isinstance(places.get(_STARTED_IN), str):
        return experiment
    run = None if address_of(record.parent) is not None else os.path.abspath(record.parent)

    def move(text: str) -> str:
        if "://" in text:
            return text
        candidates = _candidates(text, places, run)
        there = next((path for path in candidates if os.path.exists(path)), None)
        # As it was written where that is the same: messages and records are then as they were.
        return text if there is None or there == os.path.abspath(text) else there

    return with_paths(experiment, move)


def _candidates(text: str, places: Mapping[str, Any], run: str | None) -> list[str]:
    """Where a path of the record may be, the likeliest first."""
    then = os.path.normpath(os.path.join(places[_STARTED_IN], text))
    was = places.get(_RUN)
    if run is None or not isinstance(was, str):
        return [then]
    moved = os.path.normpath(os.path.join(run, os.path.relpath(then, was)))
    return [then, moved] if os.path.isabs(text) else [moved, then]
