"""A trained run from Python, as in a notebook: `run = dit_video.open("runs/dit"); run.sample(label=3, seed=0)`."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.data.record import Split
from dit_video.data.signals import FLAGS
from dit_video.evaluation.defaults import Counts
from dit_video.experiment import Experiment
from dit_video.progress import Terminal
from dit_video.run.generate import BATCH_SIZE, generate
from dit_video.run.judging import judge
from dit_video.run.open_run import OpenRun, evaluation_data, open_run, sampled_clip
from dit_video.run.prompts import Typed, rows, with_negative
from dit_video.tasks.task import RECONSTRUCT, SamplingOptions


def open(
    workdir: str | os.PathLike, *, step: int | None = None, ema: bool = True, like: Experiment | None = None
) -> "Run":
    """Opens a run to sample from it and to judge it.

    Args:
        workdir: its folder, or gs://bucket/run.
        step: the checkpoint; the latest good one, if left out.
        ema: take the averaged weights; else the raw ones.
        like: an experiment with the classes of your own that the run is made of.
    """
    return Run(open_run(Path(workdir), step=step, ema=ema, like=like, needs_data=False, console=Terminal(stderr=True)))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is open.

    Attributes:
        opened: experiment, weights and frozen parts.
    """

    opened: OpenRun

    @property
    def experiment(self) -> Experiment:
        """With the paths as they lead from here."""
        return self.opened.experiment

    @property
    def fps(self) -> float:
        """Frames per second of its clips, the most frequent."""
        return sampled_clip(self.experiment)[1][0]

    def sample(
        self,
        *,
        num_clips: int = 1,
        seed: int = 0,
        guidance: float | None = None,
        num_steps: int | None = None,
        negative_prompt: str | None = None,
        **prompts: Any,
    ) -> UInt8[np.ndarray, "N T H W 3"]:
        """Clips; of several prompts those of the first come first. As `dit-video sample` of the same seed makes them.

        Args:
            num_clips: of each prompt.
            seed: clip i depends on it and on i.
            guidance, num_steps: the run's own, if left out.
            prompts: one signal that the run is conditioned on, with a value or a list of them: label=3, text="a cat".

        Raises:
            ValueError: the run is conditioned on no such signal, or not a value of it; says what is.
        """
        task = self.experiment.task
        if task.paired:
            raise ValueError("this run continues a first frame; use dit-video sample --image=FILE")
        task = task.with_sampling(SamplingOptions(num_steps=num_steps, guidance=guidance))
        opened = dataclasses.replace(self.opened, experiment=dataclasses.replace(self.experiment, task=task))
        warn = Terminal(stderr=True).print
        batches = rows(opened, [_typed(name, value) for name, value in prompts.items()], warn)
        opened = with_negative(opened, negative_prompt, warn)
        each = [row for row in batches for _ in range(num_clips)]
        numbers = list(range(num_clips)) * len(batches)
        shape = sampled_clip(opened.experiment)[0]
        return np.stack(list(generate(opened.subject(), each, numbers, seed=seed, shape=shape)))

    def evaluate(self, *, num_clips: int = 256, num_frames: int | None = None, seed: int = 0) -> Mapping[str, Any]:
        """The card of `dit-video evaluate run`: FVD with its yardsticks and protocol, where the run makes video.

        Args:
            num_frames: the first so many of each clip; all, if left out.
        """
        frames = num_frames or self.experiment.data.clips.num_frames
        counts = Counts(num_clips=num_clips, num_frames=frames, batch_size=BATCH_SIZE)
        return judge(self.opened, counts, seed=seed, note=Terminal(stderr=True).print).card

    def reconstruct(
        self, *, num_clips: int = 8
    ) -> tuple[UInt8[np.ndarray, "N T H W 3"], UInt8[np.ndarray, "N T H W 3"]]:
        """Held-out clips, and what the codec makes of them: the best that samples can look."""
        subject, clips, made = self.opened.subject(), [], []
        size = subject.batch_size(min(BATCH_SIZE, num_clips))
        for batch, valid in evaluation_data(self.experiment).batches(Split.HELD_OUT, num_clips, size):
            clips.append(batch.require_video()[:valid])
            made.append(subject(RECONSTRUCT, batch)[:valid])
        return np.concatenate(clips), np.concatenate(made)


def _typed(name: str, value: Any) -> Typed:
    """A prompt of one signal, which may go by its short name: text is a caption or its embedding."""
    words = [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    return Typed(name, FLAGS.get(f"--{name}", (name,)), words)
