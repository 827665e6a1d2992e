"""`dit-video sample --show`: text as it is refined, pass by pass, on the console."""

import itertools
import time

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dit_video.data.batch import Batch
from dit_video.progress import shown
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import REFINE, ClipShape

# Of --show: how long a pass stays on the console.
_SECONDS_A_PASS = 0.08


def show_passes(subject: Subject, row: Batch, shape: ClipShape, seed: int, console: Console) -> None:
    """Shows the first sample as it stood after every pass; in a file or pipe, one below the other.

    Raises:
        ValueError: the task refines nothing.
    """
    size = subject.batch_size(1)
    batch = jax.tree.map(lambda x: np.repeat(x, size, axis=0), row)
    passes = subject(REFINE, batch, clip_keys(seed, range(size)), shape)[0]
    medium = subject.show(REFINE, passes, 1, 1.0)
    assert medium is not None, "what is refined can be looked at"
    states = [state for state, _ in itertools.groupby(medium.lines())]
    with Live(console=console, auto_refresh=False) as live:
        for number, state in enumerate(states):
            text = Text(f"after {number} of {len(states) - 1} passes\n{shown(state)}")
            if console.is_terminal:
                live.update(text, refresh=True)
                time.sleep(_SECONDS_A_PASS)
            else:
                console.print(text)
