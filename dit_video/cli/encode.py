"""`dit-video encode`: writes the latent cache and the embedded captions that an experiment reads."""

import argparse

from dit_video.cli.arguments import experiment_of
from dit_video.cli.usage.encode import Part
from dit_video.config.user_file import ExperimentError
from dit_video.experiment import Experiment
from dit_video.progress import Terminal
from dit_video.run import text
from dit_video.run.latents import encode


def main(arguments: argparse.Namespace) -> int:
    console, experiment = Terminal(), experiment_of(arguments)
    read = [part for part in Part if _reads(experiment, part)]
    parts = read if arguments.only is None else [Part(arguments.only)]
    if not parts:
        raise ExperimentError(
            "config.data.cache is None and config.data.signals has no text cache: this experiment trains on video "
            "and has none to write"
        )
    if arguments.caption and Part.TEXT not in parts:
        raise ExperimentError(
            f"--caption={arguments.caption[0]!r}: this writes no embeddings; see config.data.signals.text"
        )
    for name, cache in (("cache", experiment.data.cache), ("signals.text", text.text_cache(experiment.data))):
        if cache is not None and "://" in cache.directory:
            raise ExperimentError(f"config.data.{name}.directory={cache.directory}: is written here; give a folder")
    if Part.TEXT in parts:
        text.encode_text(experiment, captions=arguments.caption, overwrite=arguments.overwrite, console=console)
    if Part.LATENTS in parts:
        encode(experiment, clips_per_video=arguments.clips_per_video, overwrite=arguments.overwrite, console=console)
    return 0


def _reads(experiment: Experiment, part: Part) -> bool:
    return (experiment.data.cache if part is Part.LATENTS else text.text_cache(experiment.data)) is not None
