"""Evaluation while a run trains: its evaluators, what they judge, and which of them are due at a step."""

import dataclasses
from collections.abc import Mapping, Sequence

from dit_video.nn.module import Params
from dit_video.tasks.evaluator import EvaluationData, Evaluator
from dit_video.tasks.subject import Subject
from dit_video.training.tracker import Recorder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluators of a run, with the subject and the clips that they judge.

    Attributes:
        evaluators: by the name they are recorded under.
        subject: gets the averaged weights of the step that is judged.
        data: clips to judge by, the same ones at every step.
        seed: of what evaluators draw.
    """

    evaluators: Mapping[str, Evaluator]
    subject: Subject
    data: EvaluationData
    seed: int

    def due(self, step: int, *, last: bool) -> list[str]:
        """Names of the evaluators that judge `step`; after the last step all do."""
        return [name for name, evaluator in self.evaluators.items() if last or step % evaluator.every == 0]

    def run(self, names: Sequence[str], params: Params, step: int, recorder: Recorder, *, ema: bool) -> None:
        """Judges weights of `step`, averaged if `ema`, by the evaluators of these names, and records their reports."""
        subject = self.subject.with_weights(params, step=step, ema=ema)
        for name in names:
            report = self.evaluators[name](subject, self.data, self.seed)
            for label, medium in report.media.items():
                recorder.media(step, label, medium)
            for label, card in report.cards.items():
                recorder.card(step, label, card)
            # Last: the line in the record says that all of it is there.
            recorder.evaluation(step, name, report.scalars)
