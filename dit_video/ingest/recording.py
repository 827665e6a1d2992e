"""Recording of a world into a video set: episodes played by a policy, each with its actions and camera poses.

Episode number n is a function of the world, the policy, the seed and n, so that any number of processes record the
same set, and one that was killed goes on: what was recorded is kept in the output folder (unfinished.py). Each process
holds one episode at a time.
"""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dit_video.config.bounds import at_least
from dit_video.data.tracks import Tracks, TrackSpace
from dit_video.data.video_set import Entry, Manifest, file_digest, read_manifest, write_video_set
from dit_video.ingest.decoding_process import at_once
from dit_video.ingest.ingest import SHARD_SIZE
from dit_video.ingest.splits import assign_splits, split_warnings
from dit_video.ingest.unfinished import Unfinished, finish, unfinished
from dit_video.video.encode import stream_mp4
from dit_video.worlds.environment import Description, open_environment
from dit_video.worlds.policy import RANDOM, STICKY, open_policy

_FRAMES_AT_ONCE = 32

# Called with the number of steps that are recorded.
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded.

    Attributes:
        environment: `corridor`, or an id of Gymnasium.
        policy: sticky, random, or a Python file (worlds/policy.py).
        num_steps: actions in all, at least; the last episode is recorded to its end.
        episode_steps: after which an episode is ended.
        repeat: steps of the world for each recorded frame, its action held for all of them.
        size: height and width of the corridor's frames.
        fps: of the video; None for that of the world, by `repeat`.
    """

    environment: str
    policy: str = STICKY
    num_steps: int
    episode_steps: int = 200
    repeat: int = 1
    size: int = 64
    fps: float | None = None
    seed: int = 0

    def __post_init__(self):
        at_least(self, 1, "num_steps", "episode_steps", "repeat")
        at_least(self, 0, "seed")

    def settings(self, about: Description) -> dict[str, Any]:
        """What decides the stored bytes, as JSON."""
        own = self.policy in (STICKY, RANDOM)
        return {
            "environment": about.name,
            "environment_version": about.version,
            "environment_options": about.options,
            "policy": self.policy if own else file_digest(self.policy.partition(":")[0]),
            "episode_steps": self.episode_steps,
            "repeat": self.repeat,
            "fps": self.fps or about.fps / self.repeat,
            "seed": self.seed,
        }


class _Episode(NamedTuple):
    """What is kept of an episode, as JSON: its frames are in a file."""

    seed: int
    ended: bool
    frames: int
    height: int
    width: int
    actions: list[Any]
    poses: list[list[float]] | None


def record(
    recording: Recording,
    out: str | os.PathLike,
    *,
    held_out_fraction: float = 0.1,
    num_workers: int | None = None,
    progress: Progress = lambda done: None,
) -> Manifest:
    """Records a world into a new video set; goes on where it was killed.

    Args:
        held_out_fraction: share of the episodes, decided by the sha256 of each.
        num_workers: episodes recorded at once, each in a process of its own; None: one per core.

    Raises:
        FileExistsError, ValueError: `out` is something else, or there is no such world or policy.
    """
    if not 0 <= held_out_fraction < 1:
        raise ValueError(f"held_out_fraction={held_out_fraction}: must be at least 0 and below 1")
    about = _described(recording)
    open_policy(recording.policy)
    settings = recording.settings(about)
    chosen = {"num_steps": recording.num_steps, "held_out_fraction": held_out_fraction}
    command = json.loads(json.dumps({"name": "record", **settings, **chosen}))
    if finish(Path(out)) == command:
        return read_manifest(out, remedy="record it again")
    with unfinished(Path(out), settings) as done:
        episodes = _episodes(recording, done, at_once(num_workers), progress)
        return _write(done, command, about, episodes, settings | chosen)


def _described(recording: Recording) -> Description:
    world = open_environment(recording.environment, size=recording.size)
    world.close()
    return world.description


def _episodes(recording: Recording, done: Unfinished, num_workers: int, progress: Progress) -> dict[str, _Episode]:
    """Records the episodes 0, 1, ... until there are enough steps; returns what is kept of each, by name."""
    found: dict[str, _Episode] = {}
    steps = 0
    progress(0)
    # Of threads of this process, which a fork would copy half-way through, none may be in them.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        waiting: deque[tuple[str, Future[_Episode] | None]] = deque()
        try:
            for number in itertools.count():
                key = _key(number)
                future = None
                if key not in done.known:
                    path = os.fspath(done.work / f"{number}.mp4")
                    future = pool.submit(_record, recording, number, path)
                waiting.append((key, future))
                if len(waiting) < 2 * num_workers and future is not None:
                    continue
                while waiting and (len(waiting) >= 2 * num_workers or waiting[0][1] is None):
                    found |= _kept(done, *waiting.popleft())
                    steps = sum(episode.frames - 1 for episode in found.values())
                    progress(min(steps, recording.num_steps))
                    if steps >= recording.num_steps:
                        return found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return found


def _end_with_parent() -> None:
    """Has a process end when the one that began it does, however that one ends."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _key(number: int) -> str:
    return f"episode_{number:06d}"


def _kept(done: Unfinished, key: str, future: Future[_Episode] | None) -> dict[str, _Episode]:
    """What is kept of an episode, once it is recorded."""
    if future is not None:
        episode = future.result()
        path = done.work / f"{int(key.rpartition('_')[2])}.mp4"
        done.keep(key, episode._asdict(), path, path.stat().st_size)
    fields = done.known[key]
    return {key: _Episode(**{name: fields[name] for name in _Episode._fields})}


def _record(recording: Recording, number: int, path: str) -> _Episode:
    """Plays an episode and writes its video; in a process of its own."""
    world = _open_once(recording)
    about = world.description
    seed = int(np.random.default_rng((recording.seed, number)).integers(1 << 31))
    play = open_policy(recording.policy)(about, np.random.default_rng((recording.seed, number, 1)))
    actions, poses, ended = [], [], False

    def frames() -> Iterator[np.ndarray]:
        nonlocal ended
        shown = world.reset(seed)
        actions.append(about.actions.unknown(1)[0].tolist())
        for _ in range(recording.episode_steps + 1):
            poses.append(None if shown.pose is None else shown.pose.astype(np.float32).tolist())
            yield shown.frame
            if ended or len(actions) > recording.episode_steps:
                return
            action = play(shown.frame)
            for _ in range(recording.repeat):
                shown = world.step(action)
                if ended := shown.ended:
                    break
            actions.append(np.asarray(action).tolist())

    played = frames()
    first = next(played)
    fps = recording.fps or about.fps / recording.repeat
    num_frames = stream_mp4(path, _chunks(itertools.chain([first], played)), float(fps))
    height, width = first.shape[:2]
    return _Episode(
        seed=seed,
        ended=ended,
        frames=num_frames,
        height=height + height % 2,
        width=width + width % 2,
        actions=actions,
        poses=poses if about.pose else None,
    )


_worlds: dict[Recording, Any] = {}


def _open_once(recording: Recording) -> Any:
    """The world, opened once in a process."""
    if recording not in _worlds:
        _worlds[recording] = open_environment(recording.environment, size=recording.size)
    return _worlds[recording]


def _chunks(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while rows := list(itertools.islice(frames, _FRAMES_AT_ONCE)):
        yield np.stack(rows)


def _write(
    done: Unfinished,
    command: Mapping[str, Any],
    about: Description,
    episodes: Mapping[str, _Episode],
    settings: Mapping[str, Any],
) -> Manifest:
    space = TrackSpace(actions=about.actions, pose=about.pose)
    entries = []
    for key, episode in episodes.items():
        tracks = _tracks(space, episode)
        digest = hashlib.sha256(file_digest(done.encoded(key)).encode() + space.sha256(tracks).encode()).hexdigest()
        entries.append(
            Entry(
                file=f"{key}.mp4",
                source=about.name,
                sha256=digest,
                frames=episode.frames,
                fps=settings["fps"],
                width=episode.width,
                height=episode.height,
                stored="encoded",
                num_bytes=done.known[key]["num_bytes"],
                tracks_sha256=space.sha256(tracks),
            )
        )
    split = assign_splits(entries, settings["held_out_fraction"])
    facts = {f"{key}.mp4": {"seed": e.seed, "ended": e.ended} for key, e in episodes.items()}
    warnings = {"splits": list(split_warnings(split))}
    manifest = Manifest(
        settings={"made_by": "record", **settings, "episodes": facts, "warnings": warnings},
        class_names=(),
        entries=tuple(split),
        tracks=space,
    )
    directory = done.work / "set"
    directory.mkdir()
    manifest = write_video_set(
        directory,
        manifest,
        lambda entry: done.encoded(Path(entry.file).stem).read_bytes(),
        shard_size=SHARD_SIZE,
        on_record=lambda count, total: None,
        load_tracks=lambda entry: _tracks(space, episodes[Path(entry.file).stem]),
    )
    done.complete(command, directory)
    return manifest


def _tracks(space: TrackSpace, episode: _Episode) -> Tracks:
    dtype = np.float32 if space.actions.continuous else np.int32
    poses = None if episode.poses is None else np.array(episode.poses, np.float32)
    return Tracks(np.array(episode.actions, dtype), poses)
