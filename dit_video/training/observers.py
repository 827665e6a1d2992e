"""What watches a run and changes nothing of what it learns: record, evaluation, throughput, profiler."""

import dataclasses
import time

from dit_video.training.evaluation import Evaluation
from dit_video.training.goodput import Activity
from dit_video.training.profiler import Profile
from dit_video.training.step import TrainState
from dit_video.training.throughput import Window, device_memory
from dit_video.training.tracker import Recorder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observers:
    """The observers of one session of a run. Any others leave its weights the same, bit for bit.

    Attributes:
        recorder: writes down metrics, evaluations and events, and where wall time goes.
        evaluation: judges the averaged weights on held-out clips.
        profile: the steps that are traced; None traces none.
    """

    recorder: Recorder
    evaluation: Evaluation
    profile: Profile | None = None

    def evaluate(self, names: list[str], step: int, state: TrainState) -> None:
        """Runs and records the evaluators of these names, at `step`."""
        self.recorder.now(Activity.EVALUATE)
        self.evaluation.run(names, state.evaluated, step, self.recorder, ema=state.ema is not None)

    def evaluate_missed(self, step: int, state: TrainState, *, last: bool) -> None:
        """Runs the evaluators that were due at `step` and are not on record: the run was stopped or killed before."""
        due = self.evaluation.due(step, last=last)
        self.evaluate([name for name in due if not self.recorder.has_evaluation(step, name)], step, state)

    def measure(
        self, window: Window, step: int, loss: float, *, learning_rate: float, waited: float, compiled_later: int
    ) -> None:
        """Records throughput of the steps of `window` until `step`, time of day and device memory.

        Args:
            learning_rate: of `step`.
            waited: seconds waited for data so far.
            compiled_later: programs that were compiled in steps of this session, after those that it began with.
        """
        if rates := window.rates(waited):
            now = {"learning_rate": learning_rate, "wall_time": time.time()}
            counted = {"compiled_later": float(compiled_later)}
            self.recorder.rates(step, loss, {**rates, **now, **counted, **device_memory()})
