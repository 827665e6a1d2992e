"""One of several processes that judge together: `judged_by_processes.py ADDRESS NUM_PROCESSES INDEX`.

Prints the scalars as JSON. With one process it is the reference that the others must agree with.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from toys import SMALL_DENOISE, Brightness, judged_by

from dit_video.data.batch import Batch
from dit_video.diffusion.sampler import Euler
from dit_video.distributed.sharding import MeshShape, make_mesh
from dit_video.evaluation.fvd import FVD
from dit_video.nn.module import define, params_of
from dit_video.tasks.subject import Subject


def main(address: str, num_processes: int, index: int) -> None:
    if num_processes > 1:
        jax.distributed.initialize(address, num_processes, index)
    task = dataclasses.replace(SMALL_DENOISE, sampler=Euler(num_steps=2))
    numbers = np.random.default_rng(0)
    clips = Batch(
        video=numbers.integers(0, 256, (18, 5, 16, 16, 3), np.uint8),
        signals={"label": np.arange(18, dtype=np.int32) % 3},
    )
    mesh = make_mesh(MeshShape(data=-1, fsdp=min(2, jax.device_count())))
    # As a run gives them: weights and codec whole in every process, placed where computations need them.
    codec = jax.jit(task.blank)(jax.random.key(0))
    subject = Subject(task, define(task.init), codec, mesh, {}).with_weights(
        jax.jit(lambda: params_of(task.init(jax.random.key(1))))(), step=0, ema=True
    )
    judge = FVD(every=1, num_clips=18, num_frames=5, batch_size=5, extractor=Brightness())
    scalars = [judge(subject, judged_by(clips), seed).scalars for seed in (0, 1)]
    print(json.dumps({"devices": jax.device_count(), "processes": jax.process_count(), "scalars": scalars}))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
