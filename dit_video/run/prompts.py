"""Prompts of the command line (labels, captions, other signals) as rows of a batch to sample from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dit_video.config.user_file import ExperimentError
from dit_video.data.batch import Batch
from dit_video.data.signals import FLAGS, TEXT, examples_of
from dit_video.distributed.sharding import replicated
from dit_video.run.open_run import OpenRun
from dit_video.run.text import embeddings_of

ALL = "all"


class Typed(NamedTuple):
    """Values of one signal as they were typed.

    Attributes:
        option: what typed them, for messages.
        names: of the signals that the option may mean.
    """

    option: str
    names: tuple[str, ...]
    words: Sequence[str]


def typed(flags: Mapping[str, Sequence[str] | None], conditions: Sequence[str]) -> list[Typed]:
    """Prompts typed with the short options (`signals.FLAGS`) and with `--cond NAME=VALUE[,VALUE...]`.

    Raises:
        ValueError: a --cond without a name or a value.
    """
    found = [Typed(flag, FLAGS[flag], words) for flag, words in flags.items() if words]
    for word in conditions:
        name, equals, values = word.partition("=")
        if not (name and equals and values):
            raise ValueError(f"--cond={word}: must be NAME=VALUE, or NAME=VALUE,VALUE for one row each")
        found.append(Typed(f"--cond {name}", (name,), values.split(",")))
    return found


def rows(opened: OpenRun, prompts: Sequence[Typed], warn: Callable[[str], None]) -> list[Batch]:
    """A batch of one row for each value that was typed; one row without condition where none was.

    Raises:
        ValueError: the run does not read such a signal, several were typed, or not a value of it; says what is.
    """
    task, data = opened.experiment.task, opened.experiment.data
    unknown = dict(task.example(data, 1).signals) | examples_of(data.signals, 1)
    if not prompts and TEXT in task.reads:
        prompts = [Typed("--text", (TEXT,), [""])]
    if not prompts:
        return [Batch(signals=unknown)]
    if len(prompts) > 1:
        options = " and ".join(prompt.option for prompt in prompts)
        raise ValueError(f"{options}: a row is made from one of them; type one")
    (prompt,) = prompts
    name = name_of(opened, prompt)
    made = _values(opened, prompt, name, warn)
    batches = [Batch(signals={**unknown, name: value}) for value in made]
    for batch in batches:
        try:
            task.check_prompt(batch.signals)
        except ValueError as error:
            raise ValueError(f"{prompt.option}: {error}") from error
    return batches


def with_negative(opened: OpenRun, word: str | None, warn: Callable[[str], None]) -> OpenRun:
    """The run with a negative prompt, which guidance leads away from; of embedded text it is the empty one, if None.

    Raises:
        ValueError: the run reads no text, or a value that cannot be read.
    """
    task = opened.experiment.task
    if word is None and not (task.guided and TEXT in task.reads):
        return opened
    prompt = Typed("--negative_prompt", FLAGS["--text"], [word or ""])
    name = name_of(opened, prompt)
    if not task.guided:
        raise ValueError(f"--negative_prompt={word!r}: guidance is off; switch it on with --guidance=SCALE")
    (value,) = _values(opened, prompt, name, warn)
    frozen = task.with_negative(opened.frozen, {name: jax.tree.map(jnp.asarray, value)})
    return dataclasses.replace(opened, frozen=jax.device_put(frozen, replicated(opened.mesh)))


def name_of(opened: OpenRun, prompt: Typed) -> str:
    """The name of the signal that an option means in this run.

    Raises:
        ValueError: the run reads none of those; says what it reads, and with what option that is typed.
    """
    reads = opened.experiment.task.reads
    name = next((name for name in prompt.names if name in reads), None)
    if name is None:
        options = [_option(read) for read in reads]
        remedy = f"it is on {' and '.join(reads)}: use {' and '.join(options)}" if reads else "leave it out"
        raise ValueError(
            f"{prompt.option}={prompt.words[0]!r}: this run is not conditioned on {' or '.join(prompt.names)}; {remedy}"
        )
    return name


def _option(name: str) -> str:
    return next((flag for flag, names in FLAGS.items() if name in names), f"--cond {name}=VALUE")


def _values(opened: OpenRun, prompt: Typed, name: str, warn: Callable[[str], None]) -> list[Any]:
    """The arrays [1 ...] of each word."""
    data = opened.experiment.data
    if name == TEXT:
        # From the cache where it has them; the encoders, where they have to be opened, are so once for all.
        found = embeddings_of(opened.experiment, prompt.words, opened.mesh)
        return [jax.tree.map(lambda x, i=i: x[i : i + 1], found) for i in range(len(prompt.words))]
    if name not in data.signals:
        raise ExperimentError(f"{prompt.option}: config.data.signals has no {name!r}, so it cannot be typed")
    signal = data.signals[name]

    def class_names() -> Sequence[str]:
        return data.source.info().class_names

    words = list(prompt.words)
    if words == [ALL] and (choices := signal.choices(class_names)):
        words = list(choices)

    def parse(word: str) -> Any:
        try:
            return signal.parse(word, class_names, lambda message: warn(f"{prompt.option}: {message}"))
        except ValueError as error:
            raise ValueError(f"{prompt.option}={word}: {error}") from error

    return [parse(word) for word in words]
