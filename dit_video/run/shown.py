"""What a run must know of its data to be sampled without them: how fast its clips are, and what its classes are called.

It is in experiment.json from the first start on, so that a run that was copied, given away or moved is whole.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from dit_video.config.json_file import read_object, write_json
from dit_video.data import builders
from dit_video.data.sources import MovingDigits, NoData, Source
from dit_video.experiment import Experiment

# Field of experiment.json, and its fields.
SHOWN = "shown"
_FPS, _CLASSES = "fps", "class_names"


def record_shown(record: Path, experiment: Experiment, rates: Sequence[float]) -> None:
    """Adds it to the record of a run.

    Args:
        record: its experiment.json.
        rates: frames per second of its clips, the most frequent first.
    """
    content = read_object(record)
    shown = {_FPS: list(rates), _CLASSES: list(experiment.data.source.info().class_names)}
    if content.get(SHOWN) != shown:
        write_json(record, {**content, SHOWN: shown})


def without_missing_data(experiment: Experiment, record: Path) -> Experiment:
    """The experiment with what is on record of its data in their place, where they are not here; else as it is.

    Nothing is made: moving digits that are not here stay so.
    """
    data, shown = experiment.data, read_object(record).get(SHOWN)
    if _is_here(data.source):
        return experiment
    if shown is None and isinstance(data.source, MovingDigits):
        shown = {_FPS: [data.clips.clip_fps(builders.FPS)], _CLASSES: list(builders.CLASS_NAMES)}
    if not isinstance(shown, dict):
        return experiment
    fps, classes = shown.get(_FPS), shown.get(_CLASSES)
    if not (isinstance(fps, list) and fps and isinstance(classes, list)):
        raise ValueError(f"{record}: {SHOWN}={shown!r}: must have {_FPS} and {_CLASSES}; take it out, or bring it back")
    known = NoData(class_names=tuple(map(str, classes)), fps=float(fps[0]))
    return dataclasses.replace(experiment, data=dataclasses.replace(data, source=known))


def _is_here(source: Source) -> bool:
    if isinstance(source, MovingDigits):
        return source.is_prepared
    paths = [getattr(source, name) for name in getattr(source, "PATHS", ())]
    return all(path is None or os.path.exists(path) for path in paths)
