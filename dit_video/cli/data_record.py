"""`dit-video data record`: records a world into a set."""

import argparse
import datetime
import time

from dit_video.config.paths import shell_word
from dit_video.data.record import Split
from dit_video.ingest.recording import Recording, record
from dit_video.progress import LINE_EVERY, Terminal, bar


def run_record(arguments: argparse.Namespace) -> int:
    console = Terminal()
    recording = Recording(
        environment=arguments.environment,
        policy=arguments.policy,
        num_steps=arguments.steps,
        episode_steps=arguments.episode_steps,
        repeat=arguments.repeat,
        size=arguments.size,
        fps=arguments.fps,
        seed=arguments.seed,
    )
    began = last_print = time.monotonic()

    def show(done: int, total: int) -> None:
        """The bar, and where there is no terminal to draw it on a line now and then."""
        nonlocal last_print
        progress.update(task, completed=done)
        now = time.monotonic()
        if not console.is_terminal and now - last_print > LINE_EVERY and 0 < done < total:
            last_print, rate = now, done / (now - began)
            left = datetime.timedelta(seconds=round((total - done) / rate))
            console.print(f"recording: {done}/{total}, {rate:.1f} frames/s, ETA {left}")

    with bar("frames", console) as progress:
        task = progress.add_task("recording", total=recording.num_steps)
        manifest = record(
            recording,
            arguments.out,
            held_out_fraction=arguments.held_out_fraction,
            num_workers=arguments.num_workers,
            progress=show,
        )
    for line in manifest.settings["warnings"]["splits"]:
        console.print(f"warning: {line}", style="yellow")
    counts = ", ".join(f"{len(manifest.stored(split))} {split}" for split in Split)
    console.print(
        f"{arguments.out}: {counts} episodes; look at it with: dit-video data inspect {shell_word(arguments.out)}"
    )
    return 0
