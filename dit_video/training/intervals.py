"""How many steps a run trains, and the intervals at which it logs and saves."""

import dataclasses

from dit_video.config.bounds import at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length of a run in steps, and the intervals of logging and checkpointing.

    Attributes:
        num_steps: the run ends after this many steps.
        log_every: steps between fetching metrics from the device; every step's metrics are recorded.
        save_every: steps between checkpoints; the last step is always saved.
    """

    num_steps: int
    log_every: int = 50
    save_every: int = 1000

    def __post_init__(self):
        at_least(self, 1, "num_steps", "log_every", "save_every")
