"""A stream that is the corridor itself: what a perfect dream of it would show; and a set of a few of its episodes."""

from pathlib import Path

import numpy as np
import pytest
from pools import InThisProcess

from dit_video.data.dataset import Data
from dit_video.data.signals import ACTION, Actions
from dit_video.data.sources import VideoSet
from dit_video.data.transforms import ClipTransform
from dit_video.ingest import recording
from dit_video.ingest.recording import Recording, record
from dit_video.worlds.corridor import ACTIONS, Corridor

SIZE = 32


class Perfect:
    """The true corridor as a `Stream`; its beginning is the maze of the seed, whatever the known frames show."""

    def __init__(self, size: int = SIZE, fps: float = 100.0):
        self.world, self.num_steps, self.guidance = Corridor(size=size), 4, 1.0
        self.size, self.fps, self.frames_per_step = (size, size), fps, 1

    def reset(self, frames, actions=None, *, seed: int = 0) -> None:
        assert frames.shape[1:] == (*self.size, 3)
        self.world.reset(seed)

    def step(self, action) -> np.ndarray:
        return self.world.step(int(action)).frame[None]


def recorded(folder: Path) -> Data:
    """Data of a few episodes of the corridor."""
    small = Recording(environment="corridor", num_steps=30, episode_steps=10, size=SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "ProcessPoolExecutor", InThisProcess)
        record(small, folder, num_workers=1, held_out_fraction=0.5)
    return Data(
        source=VideoSet(directory=str(folder)),
        clips=ClipTransform(num_frames=6, size=(SIZE, SIZE)),
        batch_size=1,
        signals={ACTION: Actions(names=ACTIONS.names, num_frames=6)},
    )
