"""`dit-video play`: a trained world in a page, or a recording of it made again."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit_video.config.extras import require
from dit_video.config.user_file import ExperimentError
from dit_video.play.recording import Recording, Replay, read_recording
from dit_video.play.stage import Stage
from dit_video.play.stream import Starts, Stream
from dit_video.progress import Terminal, counted
from dit_video.run.world import World, open_world
from dit_video.video.encode import stream_mp4


def main(arguments: argparse.Namespace) -> int:
    console = Terminal()
    if arguments.replay is not None:
        recording = read_recording(arguments.replay)
        guided = bool((recording.guidance != 1).any())
        world = open_world(arguments.workdir, step=arguments.step, guided=guided, console=console)
        return replay(world, recording, arguments.out / f"{arguments.replay.stem}_replay.mp4", console)
    require(("starlette", "uvicorn", "websockets"), "web", "play")
    world = open_world(arguments.workdir, step=arguments.step, guided=arguments.guided, console=console)
    with console.status("compiling"):
        world.warm_up()
    serve(world, arguments, console)
    return 0


def serve(world: World, arguments: argparse.Namespace, console: Terminal) -> None:
    """Serves the page of a world until the process is interrupted."""
    from dit_video.play.application import Play, application
    from dit_video.web.server import Server

    starts = Starts(world.opened.experiment.data, frames_per_step=world.frames_per_step)
    if starts.actions.continuous:
        raise ExperimentError(
            f"--workdir={arguments.workdir}: its actions are {starts.actions}; keys are for discrete ones, and "
            "WorldEnv (dit_video/play/world_env.py) takes any"
        )
    stage = Stage(world, starts.actions, true_world=starts.true_world(), repeat=starts.repeat)
    play = Play(stage, starts.at, len(starts), arguments.out, guided=arguments.guided)
    app = application(play, title=f"dit_video play {arguments.workdir.name}")
    server = Server(app, port=arguments.port, host=arguments.host)
    console.print(f"{server.address}\nplayed until Ctrl-C; whoever has this address may play")
    server.run()


def replay(stream: Stream, recording: Recording, path: Path, console: Terminal) -> int:
    """Makes a recording again and writes its video; 1 where a frame differs from what was played."""
    again = Replay(stream, recording)
    path.parent.mkdir(parents=True, exist_ok=True)

    def frames() -> Iterator[np.ndarray]:
        yield from counted(again, "replaying", total=1 + len(recording.actions), unit="frames", console=console)

    stream_mp4(path, frames(), recording.fps)
    same = again.digest == recording.digest
    said = "bit-equal to what was played" if same else "not what was played: of another machine, run or version"
    console.print(f"{path}: {len(recording.actions)} steps, {said}", style="" if same else "yellow")
    return 0 if same else 1
