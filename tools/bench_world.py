"""A trained corridor beside the true one: poses of its frames, frames a second, and pictures of scripted keys.

    python -m tools.bench_world --workdir runs/corridor
    python -m tools.bench_world --workdir runs/corridor --out docs/world.gif

Both begin with the first frames of the same held-out clips and go on by the same actions, in turn. The pose of a frame
is that of the true maze whose render differs least from it (mean absolute difference), of a grid of places and angles
around the true pose; what the codec alone makes of true frames is judged likewise. The picture has the true world above
and the trained one below, a column for each script: turn left, turn right, forward, back, no key.
"""

import argparse
import copy
import itertools
import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dit_video.play.stream import Start, Starts
from dit_video.run.open_run import open_run
from dit_video.run.world import World
from dit_video.video.encode import grid, write_gif
from dit_video.worlds.corridor import BACK, FORWARD, NOOP, TURN, TURN_LEFT, TURN_RIGHT, Corridor

SCRIPTS = (TURN_LEFT, TURN_RIGHT, FORWARD, BACK, NOOP)
HORIZONS = (1, 4, 16)
# Of a square, and of a turn; so far away are the places and angles that are tried, in such steps.
_PLACES = np.arange(-3, 4) * 0.2
_ANGLES = np.arange(-6, 7) * TURN / 3
_TIMED, _HELD_FOR = 200, 4


class Beside(NamedTuple):
    """A frame of the trained world and of the true one, which stands as it was."""

    made: UInt8[np.ndarray, "H W 3"]
    true: UInt8[np.ndarray, "H W 3"]
    world: Corridor


def replayed(start: Start, options: dict) -> Corridor:
    """The true world at the last known frame of a beginning."""
    if start.episode is None:
        raise ValueError(f"{start.name}: its set does not say the seed and the actions of the episode; record it here")
    seed, actions = start.episode
    world = Corridor(**options)
    world.reset(seed)
    for action in actions:
        world.step(action)
    return world


def pose_error(frame: UInt8[np.ndarray, "H W 3"], world: Corridor) -> Float[np.ndarray, "2"]:
    """How far the pose of a frame is from that of the true world, in squares and degrees."""
    offsets = np.array(list(itertools.product(_PLACES, _PLACES, _ANGLES)))
    renders = world.render(world.pose + offsets).astype(np.int16)
    differences = np.abs(renders - frame.astype(np.int16)).mean((1, 2, 3))
    # Of equal ones the nearest to the truth: a plain wall looks the same from many places.
    equal = offsets[differences <= differences.min() + 1e-9]
    x, y, angle = equal[np.argmin(np.abs(equal).sum(1))]
    return np.array([math.hypot(x, y), math.degrees(abs(angle))])


def together(dream: World, start: Start, options: dict, actions: list[int], seed: int) -> list[Beside]:
    """Both worlds after each of some actions."""
    world = replayed(start, options)
    dream.reset(start.frames, start.actions, seed=seed)
    found = []
    for action in actions:
        made, shown = dream.step(action)[-1], world.step(action)
        # Doors that opened stay open: the maze of a frame is that of its time.
        found.append(Beside(made, shown.frame, copy.deepcopy(world)))
    return found


def measure_poses(dream: World, starts: Starts, options: dict, num_clips: int) -> None:
    """Prints the error of poses by horizon, of the trained world and of its codec."""
    codec = dream.opened.frozen.codec
    through = jax.jit(lambda codec, video: codec.decode(codec.whiten(codec.moments(video))))
    ours = {horizon: [] for horizon in HORIZONS}
    codecs = {horizon: [] for horizon in HORIZONS}
    for clip in range(num_clips):
        rng = np.random.default_rng(clip)
        held = rng.choice(SCRIPTS, -(-max(HORIZONS) // _HELD_FOR))
        actions = [int(action) for action in np.repeat(held, _HELD_FOR)]
        frames = together(dream, starts.at(clip), options, actions, seed=clip)
        with jax.set_mesh(dream.opened.mesh):
            decoded = np.asarray(through(codec, np.stack([frame.true for frame in frames])[None]))[0]
        for horizon in HORIZONS:
            beside = frames[horizon - 1]
            ours[horizon].append(pose_error(beside.made, beside.world))
            codecs[horizon].append(pose_error(decoded[horizon - 1], beside.world))
    print("frames after | squares, median (codec) | degrees, median (codec) | right to half a square and a turn")
    for horizon in HORIZONS:
        errors, limit = np.array(ours[horizon]), np.array(codecs[horizon])
        right = ((errors[:, 0] <= 0.5) & (errors[:, 1] < math.degrees(TURN))).mean()
        (squares, degrees), (least, fewest) = np.median(errors, axis=0), np.median(limit, axis=0)
        print(f"{horizon} | {squares:.2f} ({least:.2f}) | {degrees:.1f} ({fewest:.1f}) | {right:.0%}")


def measure_rate(dream: World, start: Start) -> None:
    """Prints how long a frame takes, decoded and on the host."""
    dream.reset(start.frames, start.actions)
    taken = []
    for number in range(_TIMED):
        began = time.perf_counter()
        dream.step(SCRIPTS[number % len(SCRIPTS)])
        taken.append(1000 * (time.perf_counter() - began))
    median, late = np.percentile(taken, (50, 95))
    print(
        f"{dream.num_steps} steps a frame: p50 {median:.1f} ms, p95 {late:.1f} ms, {1000 / median:.0f} frames a second"
    )


def draw(dream: World, start: Start, options: dict, out: Path, num_frames: int) -> None:
    """Writes the picture of all scripts: the true world above, the trained one below."""
    columns = [together(dream, start, options, [script] * num_frames, seed=0) for script in SCRIPTS]
    true = [np.stack([beside.true for beside in column]) for column in columns]
    made = [np.stack([beside.made for beside in column]) for column in columns]
    known = np.stack([start.frames] * len(SCRIPTS))
    videos = np.concatenate([np.concatenate([known, np.stack(row)], axis=1) for row in (true, made)])
    write_gif(out, grid(videos, len(SCRIPTS)), dream.fps)
    print(f"picture: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN")
    parser.add_argument("--num_clips", type=int, default=32, help="held-out beginnings of which poses are judged")
    parser.add_argument("--out", type=Path, metavar="GIF", help="write the picture there")
    parser.add_argument("--clip", type=int, default=0, help="held-out clip that the picture begins with (default 0)")
    parser.add_argument("--num_frames", type=int, default=16, help="of the picture, after the known ones (default 16)")
    arguments = parser.parse_args()
    opened = open_run(arguments.workdir)
    dream = World(opened)
    starts = Starts(opened.experiment.data, frames_per_step=dream.frames_per_step)
    true = starts.true_world()
    if not isinstance(true, Corridor):
        parser.error(f"{arguments.workdir}: its set was not recorded in the corridor, whose poses can be known")
    options = dict(true.description.options)
    dream.warm_up()
    measure_rate(dream, starts.at(0))
    if arguments.out is not None:
        draw(dream, starts.at(arguments.clip), options, arguments.out, arguments.num_frames)
    measure_poses(dream, starts, options, arguments.num_clips)


if __name__ == "__main__":
    main()
