"""`dit-video import`: makes a run of published weights."""

import argparse

from dit_video.cli.arguments import named
from dit_video.config.atomic import new_folder
from dit_video.config.paths import shell_word
from dit_video.progress import Terminal
from dit_video.run.import_weights import import_run
from dit_video.weights.source import read_digests


def main(arguments: argparse.Namespace) -> int:
    if arguments.config is None and arguments.overrides:
        raise ValueError(f"{arguments.overrides[0]}: there is no experiment to change; name one with --config")
    if arguments.config is not None and arguments.codec is not None:
        raise ValueError(f"--codec={arguments.codec}: the experiment of --config names its own; leave one of them out")
    experiment = None if arguments.config is None else named(arguments.config, arguments.overrides)
    with new_folder(arguments.out) as folder:
        parts = import_run(
            arguments.source,
            folder,
            out=arguments.out,
            experiment=experiment,
            overrides=tuple(arguments.overrides),
            codec=arguments.codec,
            allow_not_finite=arguments.allow_not_finite,
            digests={} if arguments.sha256 is None else read_digests(arguments.sha256, arguments.source),
        )
    lines = [
        f"{part.network}: {part.num_tensors} tensors of {' and '.join(map(str, part.dtypes))}, each mapped once: "
        f"{part.num_params:,} parameters in float32"
        for part in parts
    ]
    for part in parts:
        lines += part.notes
        if part.sampled:
            lines.append(part.sampled)
        if part.not_followed:
            lines.append(f"not followed of its scheduler, so that samples differ: {', '.join(part.not_followed)}")
        if part.needs:
            lines.append(f"keep these folders, which the run reads: {', '.join(part.needs)}")
    lines.append(
        f"done: {arguments.out}; export takes it as --workdir, as do sample (a denoiser) and evaluate (where --config "
        f"gave it data); `dit-video train --init_from={shell_word(arguments.out)}` starts from it"
    )
    Terminal().print("\n".join(lines))
    return 0
