"""`dit-video data record`: records a world into a set."""

import argparse

from dit_video.cli.data_json import print_set
from dit_video.config.paths import shell_word
from dit_video.data.record import Split
from dit_video.ingest.recording import Recording, record
from dit_video.progress import Terminal, progress_of


def run_record(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
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
    with progress_of("recording", total=recording.num_steps, unit="frames", console=console) as show:
        manifest = record(
            recording,
            arguments.out,
            held_out_fraction=arguments.held_out_fraction,
            num_workers=arguments.num_workers,
            progress=show,
        )
    if arguments.json:
        print_set(arguments.out, manifest)
        return 0
    for line in manifest.settings["warnings"]["splits"]:
        console.print(f"warning: {line}", style="yellow")
    counts = ", ".join(f"{len(manifest.stored(split))} {split}" for split in Split)
    console.print(
        f"{arguments.out}: {counts} episodes; look at it with: dit-video data inspect {shell_word(arguments.out)}"
    )
    return 0
