"""Class accuracy of generated digit clips, by a classifier trained on real clips.

    python tools/read_digits.py --workdir runs/quickstart_dit
    python tools/read_digits.py --workdir runs/quickstart_dit --num_clips 500 --guidance 4 --json

A small convolutional reader learns the moving digits that the run was trained on and is proved on held-out clips, whose
scans are in no training clip. Then it reads five sets of clips: held-out ones (the ceiling), the same through the run's
codec, clips generated for balanced labels at the run's guidance, at guidance scale 1, and with the labels withheld from
the network (chance). The generated sets share their noise, so they differ by what the label does alone.

The reader is kept beside the data and used again for the same clips. Intervals are Wilson's, for independent clips;
held-out clips share some scans, so theirs is a little too narrow.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from safetensors.numpy import load_file, save_file

from dit_video.arrays import Video
from dit_video.cli.usage.arguments import add_weights
from dit_video.cli.weights import open_weights
from dit_video.config.components import to_json
from dit_video.data.batch import Batch
from dit_video.data.dataset import Data
from dit_video.data.record import NO_LABEL, Split
from dit_video.data.signals import LABEL
from dit_video.data.sources import MovingDigits
from dit_video.dit.condition import ClassCondition
from dit_video.nn.module import Definition, Params, define, params_of
from dit_video.run.open_run import OpenRun, description
from dit_video.tasks.keys import clip_keys, purpose_key
from dit_video.tasks.latent_diffusion import Denoise
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, RECONSTRUCT, ClipShape
from dit_video.weights.digest import name_as, weights_digest

NUM_DIGITS = 10
BATCH_SIZE = 32
# 97.5 % quantile of the standard normal: two-sided intervals of 95 %.
Z = 1.959964

Item = TypeVar("Item")
# Clips, their digits, and how many of the rows are real.
LabelledVideo = tuple[UInt8[np.ndarray, "B T H W 3"], Int[np.ndarray, "B"], int]


class Reader(nnx.Module):
    """Digit of a clip: strided convolutions read each frame by itself, and its logits are averaged over frames."""

    def __init__(self, size: tuple[int, int], widths: tuple[int, ...], *, rngs: nnx.Rngs):
        (height, width), channels, convolutions = size, 1, []
        for features in widths:
            kernel = (5, 5) if channels == 1 else (3, 3)
            convolutions.append(nnx.Conv(channels, features, kernel, strides=2, rngs=rngs))
            height, width, channels = (height + 1) // 2, (width + 1) // 2, features
        self.convolutions = nnx.List(convolutions)
        self.head = nnx.Linear(height * width * channels, NUM_DIGITS, rngs=rngs)

    def __call__(self, video: Video) -> Float[Array, "B 10"]:
        num_clips, num_frames, height, width, _ = video.shape
        grey = video.astype(jnp.float32).mean(-1, keepdims=True) / 127.5 - 1
        x = grey.reshape(num_clips * num_frames, height, width, 1)
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        logits = self.head(x.reshape(len(x), -1))
        return logits.reshape(num_clips, num_frames, NUM_DIGITS).mean(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """Training settings of the classifier. Motion is the augmentation: frames show one scan at different places.

    Attributes:
        batch_size, num_frames: clips in a step, and frames drawn from each; every frame has to be read by itself.
        required: least accuracy on held-out clips; a reader below it is refused.
    """

    widths: tuple[int, ...] = (24, 48, 96)
    num_steps: int = 600
    batch_size: int = 64
    num_frames: int = 2
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    seed: int = 0
    required: float = 0.95


@dataclasses.dataclass(frozen=True)
class Score:
    """Confusion matrix of one set of clips: confusion[true digit, digit read]."""

    confusion: Int[np.ndarray, "10 10"]

    @property
    def num_clips(self) -> int:
        return int(self.confusion.sum())

    @property
    def num_right(self) -> int:
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_clips

    def as_json(self) -> dict[str, Any]:
        return {
            "num_clips": self.num_clips,
            "num_right": self.num_right,
            "accuracy": self.accuracy,
            "interval_95": wilson(self.num_right, self.num_clips),
            "confusion": self.confusion.tolist(),
        }


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A trained classifier with its held-out accuracy.

    Attributes:
        held_out: its score on held-out real clips.
        seconds: what learning took, decoding not included.
    """

    definition: Definition
    params: Params
    held_out: Score
    seconds: float

    def score(self, batches: Iterable[LabelledVideo]) -> Score:
        """Reads every real row of `batches`."""
        return _score(self.definition, self.params, batches)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights(parser)
    parser.add_argument("--num_clips", type=int, default=200, help="clips of each generated set (default 200)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="guidance scale (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of the generated clips' noise (default 0)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    arguments = parser.parse_args()
    if arguments.num_clips < 1 or arguments.num_clips % NUM_DIGITS:
        parser.error(f"--num_clips={arguments.num_clips}: must be a multiple of {NUM_DIGITS}, as many of each digit")
    console = Console(stderr=arguments.json)
    try:
        result = read_run(arguments, console)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        show(result, console)
    return 0


def read_run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Learns to read or loads a reader, generates clips with a run and reads them."""
    opened = open_weights(arguments, console)
    task = opened.experiment.task
    if (
        not isinstance(task, Denoise)
        or not isinstance(task.condition, ClassCondition)
        or task.condition.num_classes != NUM_DIGITS
    ):
        raise ValueError(f"{arguments.workdir}: must be a run that generates clips for one of {NUM_DIGITS} labels")
    data, guidance = opened.experiment.data, task.guidance
    if arguments.guidance is not None:
        guidance = dataclasses.replace(guidance, scale=arguments.guidance)
    guided = _guided(opened, task, guidance.scale)
    plain = guided if guidance.scale == 1 else _guided(opened, task, 1.0)
    reader = reader_of(data, Lessons(), console)
    scores = {
        "held-out": reader.held_out,
        "held-out through the codec": reader.score(reconstructions(guided, data, console)),
    }
    judged = f"generated, guidance scale {guidance.scale:g}"
    generators = {
        judged: (guided, True),
        "generated, guidance scale 1": (plain, True),
        "generated, labels withheld": (plain, False),
    }
    labels = np.arange(arguments.num_clips, dtype=np.int32) % NUM_DIGITS
    shape = (data.clips.num_frames, *data.clips.size)
    total = -(-len(labels) // BATCH_SIZE)
    for name, (subject, with_labels) in generators.items():
        clips = generations(subject, labels, shape, seed=arguments.seed, with_labels=with_labels)
        scores[name] = reader.score(_counted(clips, name, total, console))
    return {
        "scores": {name: score.as_json() for name, score in scores.items()},
        "judged": judged,
        "class_names": list(data.source.info().class_names),
        "protocol": protocol(data, Lessons()) | {"labels": "balanced, in turn"},
        "reader": {"weights": weights_digest(reader.params), "seconds": reader.seconds},
        "subject": {
            **description(opened.experiment, opened.workdir),
            "guidance": to_json(guidance),
            "step": opened.step,
            "weights": "ema" if opened.ema else "raw",
            "digest": weights_digest(opened.params),
            "seed": arguments.seed,
        },
    }


def reader_of(data: Data, lessons: Lessons, console: Console) -> Learnt:
    """The reader for the clips of `data`: the one kept beside them, or one that learns now.

    Raises:
        ValueError: these are not moving digits; the reader is not good enough; or the kept one is damaged.
    """
    if not isinstance(data.source, MovingDigits):
        raise ValueError(f"config.data.source is a {type(data.source).__name__}: digits are read in MovingDigits only")
    definition = define(lambda rng: Reader(data.clips.size, lessons.widths, rngs=nnx.Rngs(rng)))
    made_for = json.dumps(protocol(data, lessons), sort_keys=True)
    folder, key = Path(data.source.directory), hashlib.sha256(made_for.encode()).hexdigest()
    file = folder.with_name(f"{folder.name}-reader-{key[:12]}.safetensors")
    if file.is_file():
        return _load(file, definition)
    # All in memory: the reader goes over them several times.
    rows = [(video[:valid], label[:valid]) for video, label, valid in real_clips(data, Split.TRAIN, console)]
    video, label = (np.concatenate(parts) for parts in zip(*rows))
    began = time.perf_counter()
    params = learn(definition, lessons, video, label, console)
    seconds = time.perf_counter() - began
    held_out = _score(definition, params, real_clips(data, Split.HELD_OUT, console))
    if held_out.accuracy < lessons.required:
        raise ValueError(
            f"the reader is right on {held_out.num_right} of {held_out.num_clips} held-out clips, "
            f"{lessons.required:.0%} are required before its word counts; give it more training clips"
        )
    learnt = Learnt(definition, params, held_out, seconds)
    _save(file, learnt, made_for)
    console.print(f"the reader learnt for {seconds:.0f} s; it is kept in {file}", highlight=False)
    return learnt


def protocol(data: Data, lessons: Lessons) -> dict[str, Any]:
    """Settings that determine a classifier and the real clips it is tested on."""
    info = data.source.info()
    return {
        "set": info.digest,
        "splits": {split.value: info.split_digest[split] for split in Split},
        "clips": to_json(data.clips),
        "reader": dataclasses.asdict(lessons),
    }


def real_clips(data: Data, split: Split, console: Console) -> Iterator[LabelledVideo]:
    """One clip of every video of a split."""
    num_clips = data.source.info().num_records[split]
    batches = data.judged(split, num_clips, BATCH_SIZE, seed=0)
    total = -(-num_clips // BATCH_SIZE)
    for batch, valid in _counted(batches, f"{split} clips", total, console):
        yield np.asarray(batch.video), np.asarray(batch.require_signal(LABEL)), valid


def reconstructions(subject: Subject, data: Data, console: Console) -> Iterator[LabelledVideo]:
    """The held-out clips encoded and decoded by the codec of a run."""
    for video, label, valid in real_clips(data, Split.HELD_OUT, console):
        yield subject(RECONSTRUCT, Batch(video=video)), label, valid


def generations(
    subject: Subject, labels: Int[np.ndarray, "N"], shape: ClipShape, *, seed: int, with_labels: bool
) -> Iterator[LabelledVideo]:
    """Generates a clip for each of `labels`, clip i from noise i, with the label as condition or withheld."""
    for first in range(0, len(labels), BATCH_SIZE):
        valid = min(BATCH_SIZE, len(labels) - first)
        # One shape is compiled: a short last batch is filled up, and its surplus clips are never read.
        expected = np.resize(labels[first : first + valid], BATCH_SIZE)
        shown = expected if with_labels else np.full_like(expected, NO_LABEL)
        yield (
            subject(
                GENERATE,
                Batch(signals={LABEL: shown}),
                clip_keys(seed, range(first, first + BATCH_SIZE)),
                shape,
            ),
            expected,
            valid,
        )


def learn(
    definition: Definition,
    lessons: Lessons,
    video: UInt8[np.ndarray, "N T H W 3"],
    label: Int[np.ndarray, "N"],
    console: Console,
) -> Params:
    """Trains a reader by cross-entropy of single frames, with AdamW, warm-up and cosine decay to 0."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, lessons.learning_rate, min(lessons.warmup_steps, lessons.num_steps - 1), lessons.num_steps
    )
    optimizer = optax.adamw(rate, weight_decay=lessons.weight_decay)

    @jax.jit
    def step(params: Params, state: optax.OptState, frames: Video, label: Int[Array, "B"]):
        def loss(params: Params) -> Float[Array, ""]:
            logits = definition.bind(params)(frames)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rngs = nnx.Rngs(purpose_key(lessons.seed, "reader"))
    params = params_of(Reader(video.shape[2:4], lessons.widths, rngs=rngs))
    state, rng = optimizer.init(params), np.random.default_rng(lessons.seed)
    for _ in _counted(range(lessons.num_steps), "learning to read", lessons.num_steps, console):
        clips = rng.integers(len(video), size=(lessons.batch_size, 1))
        frames = rng.integers(video.shape[1], size=(lessons.batch_size, lessons.num_frames))
        # Every frame is a clip of its own here, so that none leans on the others.
        chosen = video[clips, frames].reshape(-1, 1, *video.shape[2:])
        params, state = step(params, state, chosen, np.repeat(label[clips[:, 0]], lessons.num_frames))
    return jax.block_until_ready(params)


def wilson(num_right: int, num_clips: int) -> tuple[float, float]:
    """Wilson score interval (95 %) of a share (Wilson 1927): valid near 0 and 1 too, unlike the normal one."""
    share, weight = num_right / num_clips, Z**2 / num_clips
    centre = share + weight / 2
    reach = (weight * (share * (1 - share) + weight / 4)) ** 0.5
    low, high = ((centre + sign * reach) / (1 + weight) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def show(result: dict[str, Any], console: Console) -> None:
    """Prints what was read right, and the digits of the judged clips against what was read."""
    subject = result["subject"]
    title = f"{subject['run']} step {subject['step']} ({subject['weights']}), seed {subject['seed']}"
    table = Table("clips", "N", "read right", "95 % interval", title=title)
    for name, score in result["scores"].items():
        low, high = score["interval_95"]
        table.add_row(name, f"{score['num_clips']}", f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}")
    console.print(table)
    names, judged = result["class_names"], result["judged"]
    confusion = Table("label", *names, title=f"{judged}: what was read, by label")
    for digit, row in enumerate(result["scores"][judged]["confusion"]):
        cells = [f"[bold]{count}[/]" if read == digit else str(count or "") for read, count in enumerate(row)]
        confusion.add_row(names[digit], *cells)
    console.print(confusion)


def _score(definition: Definition, params: Params, batches: Iterable[LabelledVideo]) -> Score:
    @jax.jit
    def read(params: Params, video: Video) -> Int[Array, "B"]:
        return jnp.argmax(definition.bind(params)(video), axis=-1)

    confusion = np.zeros((NUM_DIGITS, NUM_DIGITS), np.int64)
    for video, label, valid in batches:
        np.add.at(confusion, (label[:valid], np.asarray(read(params, video))[:valid]), 1)
    return Score(confusion)


def _counted(items: Iterable[Item], name: str, total: int, console: Console) -> Iterable[Item]:
    """Iterates with a progress bar, where there is a terminal."""
    return track(items, name, total=total, console=console, transient=True, disable=not console.is_terminal)


def _guided(opened: OpenRun, task: Denoise, scale: float) -> Subject:
    """The weights of a run, sampled at a guidance scale."""
    guided = dataclasses.replace(task, guidance=dataclasses.replace(task.guidance, scale=scale))
    return dataclasses.replace(opened, experiment=dataclasses.replace(opened.experiment, task=guided)).subject()


def _save(file: Path, learnt: Learnt, made_for: str) -> None:
    metadata = {
        "made_for": made_for,
        "weights": weights_digest(learnt.params),
        "held_out": json.dumps(learnt.held_out.confusion.tolist()),
        "seconds": f"{learnt.seconds:.1f}",
    }
    # Another process may learn the same at the same time: each writes its own file, and the last rename wins.
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: np.asarray(value) for name, value in learnt.params.items()}, temporary, metadata)
    temporary.replace(file)


def _load(file: Path, definition: Definition) -> Learnt:
    try:
        params = {name: jnp.asarray(value) for name, value in load_file(file).items()}
        with safetensors.safe_open(file, "numpy") as opened:
            metadata = opened.metadata()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: cannot be read ({error}); delete it, and the reader learns again") from error
    if name_as(metadata["weights"], params) != metadata["weights"]:
        raise ValueError(f"{file}: is damaged; delete it, and the reader learns again")
    held_out = Score(np.asarray(json.loads(metadata["held_out"])))
    return Learnt(definition, params, held_out, float(metadata["seconds"]))


if __name__ == "__main__":
    sys.exit(main())
