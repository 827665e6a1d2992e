"""A run judged by all evaluators that suit its task: what `dit-video evaluate run` measures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dit_video.data.sources import check_prepared
from dit_video.evaluation.defaults import Counts, evaluators_for
from dit_video.run.open_run import OpenRun, evaluation_data
from dit_video.run.preflight import check_num_clips
from dit_video.tasks.media import Media


class Judged(NamedTuple):
    """What was measured.

    Attributes:
        card: the first of an evaluator where there is one, such as FVD's, with the others' by name and everything else
            that was measured under "measured".
        media: what is to be looked at, by name.
    """

    card: dict[str, Any]
    media: Mapping[str, Media]


def judge(opened: OpenRun, counts: Counts, *, seed: int, note: Callable[[str], None]) -> Judged:
    """Judges a run; a collective call of all processes.

    Args:
        note: called with what is measured next.

    Raises:
        ValueError: an evaluator that does not suit the task, or fewer clips than it judges; names both numbers.
    """
    check_prepared(opened.experiment.data.source)
    task, data, subject = opened.experiment.task, evaluation_data(opened.experiment), opened.subject()
    judges = evaluators_for(task, counts)
    inventories = opened.experiment.data.inventories()
    for evaluator in judges.values():
        evaluator.check(task, opened.experiment.data)
        check_num_clips(evaluator, inventories)
    measured, media, cards = {}, {}, {}
    for name, evaluator in judges.items():
        note(f"{name} ...")
        report = evaluator(subject, data, seed)
        measured |= report.scalars
        media |= report.media
        cards |= report.cards
    # The first is the file's own, which `evaluate compare` reads.
    own = next(iter(cards), None)
    card = {
        **({"subject": dict(subject.description)} if own is None else cards.pop(own)),
        **cards,
        "measured": measured,
    }
    return Judged(card, media)
