"""Which evaluators `dit-video evaluate run` uses: the task's own, or those for what it can do."""

import dataclasses
from collections.abc import Mapping

from dit_video.evaluation.evaluators import HeldOutError, Reconstruction, Samples
from dit_video.evaluation.features import Extractor
from dit_video.evaluation.fvd import FVD, maker
from dit_video.evaluation.i3d import I3DLogits
from dit_video.evaluation.text import BitsPerByte, SampledText
from dit_video.evaluation.text_judge import TrainedJudge
from dit_video.tasks.evaluator import Evaluator
from dit_video.tasks.media import Video
from dit_video.tasks.task import GENERATE, LIKELIHOOD, RECONSTRUCT, VALIDATE, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """How much is judged and how, whatever the evaluators are.

    Attributes:
        num_clips, batch_size: of every set that is judged.
        num_frames: the first so many frames of each clip, where videos are compared.
        extractor, yardsticks: as of `FVD`.
        judge: as of `SampledText`.
    """

    num_clips: int
    num_frames: int
    batch_size: int
    extractor: Extractor = I3DLogits()
    yardsticks: bool = True
    judge: TrainedJudge | None = None


def evaluators_for(task: Task, counts: Counts) -> Mapping[str, Evaluator]:
    """The task's own judges, else those that call what it can do, by name.

    Raises:
        ValueError: the task has no function that an evaluator could call, or none that a judge of text could.
    """
    functions = task.functions()
    chosen: dict[str, Evaluator] = {}
    if VALIDATE in functions:
        chosen["held_out_error"] = HeldOutError(every=1)
    writes_text = LIKELIHOOD in functions and GENERATE in functions
    if counts.judge is not None:
        if not writes_text:
            raise ValueError(f"judge={counts.judge.run}: reads text, and a {type(task).__name__} writes none")
        # Before the others: the first card is the file's own, which `evaluate compare` reads.
        chosen["sampled_text"] = SampledText(every=1)
    if LIKELIHOOD in functions:
        chosen["bits_per_byte"] = BitsPerByte(every=1)
    if writes_text:
        chosen.setdefault("sampled_text", SampledText(every=1))
    if own := task.judges():
        chosen |= own
    elif GENERATE in functions:
        chosen["pictures"] = Samples(every=1)
    elif RECONSTRUCT in functions:
        chosen["pictures"] = Reconstruction(every=1)
    made = functions.get(maker(functions))
    if not own and made is not None and made.medium is not None and issubclass(made.medium, Video):
        chosen["fvd"] = FVD(every=1, num_frames=counts.num_frames, extractor=counts.extractor)
    if not chosen:
        raise ValueError(
            f"{type(task).__name__}.functions: has {', '.join(functions) or 'none'}; to be evaluated a task needs "
            f"{VALIDATE!r}, {GENERATE!r} or judges of its own"
        )
    return {name: _with_counts(evaluator, counts) for name, evaluator in chosen.items()}


def _with_counts(evaluator: Evaluator, counts: Counts) -> Evaluator:
    """An evaluator with those of the counts that it has fields for; how many samples are looked at stays its own."""
    if isinstance(evaluator, Samples):
        return evaluator
    names = {field.name for field in dataclasses.fields(evaluator)}
    values = {field.name: getattr(counts, field.name) for field in dataclasses.fields(counts)}
    return dataclasses.replace(evaluator, **{name: value for name, value in values.items() if name in names})
