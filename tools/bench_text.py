"""Speed of writing text against its quality: masked diffusion and blocks beside their autoregressive twin.

    python -m tools.bench_text --runs=runs/text_masked,runs/text_block --ar=runs/text_ar --judge=runs/text_judge \\
        --out=docs/text_bench.json

All in one process: settings take turns, and each counts by its median; compiling is not timed. Quality is bits per
token under the autoregressive judge, which has another seed, and under a Kneser-Ney n-gram; a setting that fails a
guard of variety is marked and equals nothing. Besides time, what does not depend on this machine: passes of the
network, FLOPs and bytes of weights read per token.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dit_video.config.json_file import write_json
from dit_video.data.batch import Batch
from dit_video.data.record import Split, TokenRow
from dit_video.data.text_tokens import PROMPT, TOKENS
from dit_video.diffusion.unmasking import Confidence, EntropyBound, Order, RandomOrder, Spread, Threshold, Unmasking
from dit_video.evaluation.ngram import KneserNey
from dit_video.evaluation.text import failed_guards, variety
from dit_video.evaluation.text_judge import judged_rows, spelled
from dit_video.progress import Terminal
from dit_video.run.open_run import OpenRun, evaluation_data, open_run
from dit_video.tasks.factorization import Autoregressive
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, REFINE
from dit_video.tasks.text import LanguageModel
from dit_video.training.flops import count_flops

TOLERANCES = (0.02, 0.05, 0.10)
_TURNS = 5


def text_task(opened: OpenRun) -> LanguageModel:
    task = opened.experiment.task
    assert isinstance(task, LanguageModel), f"{opened.workdir}: is no run of text"
    return task


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run sampled in one way."""

    run: str
    name: str
    opened: OpenRun
    sampler: Unmasking

    def subject(self) -> Subject:
        task = dataclasses.replace(text_task(self.opened), sampler=self.sampler)
        experiment = dataclasses.replace(self.opened.experiment, task=task)
        return dataclasses.replace(self.opened, experiment=experiment).subject()


COUNTED = {"random": RandomOrder, "spread": Spread, "confidence": Confidence}
ADAPTIVE: Mapping[str, Order] = {"threshold": Threshold(), "entropy_bound": EntropyBound()}


def settings_of(
    path: str, opened: OpenRun, names: Sequence[str], tokens: Sequence[int], temperatures: Sequence[float]
) -> list[Setting]:
    """An autoregressive run at several temperatures; others in some orders with several numbers of tokens a pass."""
    if isinstance(text_task(opened).factorization, Autoregressive):
        return [Setting(path, f"T={t:g}", opened, Unmasking(temperature=t)) for t in temperatures]
    orders: list[Order] = []
    for name in names:
        orders += [ADAPTIVE[name]] if name in ADAPTIVE else [COUNTED[name](tokens=k) for k in tokens]
    return [Setting(path, str(order), opened, Unmasking(order=order)) for order in orders]


def open_rows(num: int, length: int) -> Batch:
    """Rows in which all is to be written."""
    shape = (num, length)
    return Batch(signals={PROMPT: TokenRow(np.full(shape, -1, np.int32), np.ones(shape, np.int32))})


class Judges:
    """What samples are judged by: an autoregressive run of another seed, an n-gram model, and held-out text."""

    def __init__(self, judge: OpenRun, num_rows: int):
        data = evaluation_data(judge.experiment)
        self.length, self.subject = data.shape[0], judge.subject()
        self.held_out, training = _rows(data, Split.HELD_OUT, num_rows), _rows(data, Split.TRAIN, 4096)
        num_tokens = int(max(self.held_out.max(), training.max())) + 1
        self.model, self.known = KneserNey(training, num_tokens), spelled(self.subject, training)
        self.variety = self._variety(self.held_out)

    def __call__(self, rows: np.ndarray) -> dict[str, Any]:
        """Bits per token by both judges, and the guards that fail."""
        bits, _ = judged_rows(self.subject, rows, len(rows))
        rows = np.minimum(rows, self.model.num_tokens - 1)  # a token that no text has
        return {
            "judge_bits": float(bits.sum() / rows.size),
            "ngram_bits": float(self.model.bits(rows).mean()),
            "guards": failed_guards(self._variety(rows), self.variety),
        }

    def _variety(self, rows: np.ndarray) -> dict[str, float]:
        return variety(rows, spelled(self.subject, rows), self.known)


def _rows(data: Any, split: Split, number: int) -> np.ndarray:
    while True:
        try:
            batches = list(data.batches(split, number, number))
            return np.concatenate([np.asarray(batch.signals[TOKENS].tokens)[:valid] for batch, valid in batches])
        except ValueError:  # there are fewer rows
            number //= 2


def quality(setting: Setting, judges: Judges, num_rows: int) -> dict[str, Any]:
    """What a setting's rows are worth, and how many passes they took."""
    subject, shape = setting.subject(), (judges.length, 1, 1)
    history = np.asarray(subject(REFINE, open_rows(num_rows, judges.length), clip_keys(0, range(num_rows)), shape))
    changed = (np.diff(history, axis=1) != 0).any((0, 2))
    passes = int(np.flatnonzero(changed).max()) + 1
    return {"passes_per_row": passes, "tokens_per_pass": judges.length / passes, **judges(history[:, -1])}


def cost(setting: Setting, length: int, passes: float) -> dict[str, float]:
    """FLOPs and bytes of weights per token of one row, which no machine changes."""
    model, kind = setting.opened.definition, text_task(setting.opened).factorization
    weights = sum(int(np.prod(shape.shape)) * 4 for shape in model.shapes.values())
    # Of blocks and of autoregression without attention to the cache.
    per_pass = kind.block_size if kind.block_size > 1 or isinstance(kind, Autoregressive) else length
    tokens = jax.ShapeDtypeStruct((1, per_pass), "int32")
    flops = count_flops(lambda params, x: model.bind(params)(x), model.shapes, tokens)
    return {"flops_per_token": flops * passes / length, "weight_bytes_per_token": weights * passes / length}


def timed(settings: Sequence[Setting], length: int, batch_size: int) -> list[float]:
    """Median seconds of writing a batch, the settings in turns."""
    batch, keys = open_rows(batch_size, length), clip_keys(0, range(batch_size))
    subjects = [setting.subject() for setting in settings]
    seconds: list[list[float]] = [[] for _ in settings]
    for turn in range(_TURNS + 1):
        for subject, taken in zip(subjects, seconds):
            began = time.perf_counter()
            subject(GENERATE, batch, keys, (length, 1, 1))  # comes back when it is on the host
            if turn:  # the first one compiles
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in seconds]


def seconds_of_products(opened: OpenRun, length: int, batch_size: int) -> float:
    """Median seconds of a loop over `length` tokens that multiplies by the weights and does nothing else."""
    weights = []
    for name, value in opened.params.items():
        axes = opened.definition.axes[name]
        layers = value if axes[0] == "layers" else value[None]
        rest = [axis for axis in axes if axis != "layers"]
        if "embed" not in rest or len(rest) < 2 or name == "embedding":
            continue
        num_in = layers.shape[1] if rest[0] == "embed" else int(np.prod(layers.shape[1:-1]))
        weights += [layer.reshape(num_in, -1) for layer in layers]
    width = max(max(weight.shape) for weight in weights)

    @jax.jit
    def loop(x: jax.Array) -> jax.Array:
        def token(_: int, x: jax.Array) -> jax.Array:
            for weight in weights:
                y = x[:, : weight.shape[0]] @ weight
                x = x + 1e-3 * jnp.pad(y, ((0, 0), (0, width - weight.shape[1])))
            return x

        return jax.lax.fori_loop(0, length, token, x)

    x, taken = jnp.ones((batch_size, width)), []
    for turn in range(_TURNS + 1):
        began = time.perf_counter()
        loop(x).block_until_ready()
        taken += [time.perf_counter() - began] if turn else []
    return statistics.median(taken)


def sentences(results: Sequence[Mapping[str, Any]], batch_sizes: Sequence[int]) -> list[str]:
    """How many times faster than autoregression at T = 1 the fastest setting of equal quality is, by batch size."""
    base = next(row for row in results if row["setting"] == "T=1")
    said = []
    for tolerance in TOLERANCES:
        parts = []
        for size in batch_sizes:
            others = [row for row in results if row["kind"] != base["kind"] and not row["guards"]]
            equal = [row for row in others if row["judge_bits"] <= base["judge_bits"] + tolerance]
            if not equal:
                parts.append(f"none is equal at batch {size}")
                continue
            best = max(equal, key=lambda row: row["tokens_per_s"][str(size)])
            times = best["tokens_per_s"][str(size)] / base["tokens_per_s"][str(size)]
            parts.append(f"{times:.2f} times at batch {size} ({best['kind']}, {best['setting']})")
        said.append(f"within {tolerance} bits of autoregression, guards passed: {'; '.join(parts)}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, help="runs of Masked or Blocks text, with commas")
    parser.add_argument("--ar", required=True, help="their autoregressive twin")
    parser.add_argument("--judge", required=True, help="an autoregressive run of another seed")
    parser.add_argument("--batch_sizes", default="1,8,64")
    parser.add_argument("--orders", default=",".join((*COUNTED, *ADAPTIVE)))
    parser.add_argument("--tokens", default="1,2,4,8", help="tokens a pass")
    parser.add_argument("--temperatures", default="1,0.9,0.8")
    parser.add_argument("--num_rows", type=int, default=256, help="rows that are judged")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    console = Terminal()
    tokens, sizes = ([int(word) for word in text.split(",")] for text in (arguments.tokens, arguments.batch_sizes))
    temperatures = [float(word) for word in arguments.temperatures.split(",")]
    judges = Judges(open_run(Path(arguments.judge)), arguments.num_rows)
    settings = [
        setting
        for path in (arguments.ar, *arguments.runs.split(","))
        for setting in settings_of(path, open_run(Path(path)), arguments.orders.split(","), tokens, temperatures)
    ]
    results: list[dict[str, Any]] = []
    for setting in settings:
        found = quality(setting, judges, arguments.num_rows)
        kind = type(text_task(setting.opened).factorization).__name__
        row = {"kind": kind, "run": setting.run, "setting": setting.name, **found, "tokens_per_s": {}}
        results.append(row | cost(setting, judges.length, found["passes_per_row"]))
        console.print(json.dumps(results[-1]))
    for size in sizes:
        for row, seconds in zip(results, timed(settings, judges.length, size)):
            row["tokens_per_s"][str(size)] = size * judges.length / seconds
    base = next(row for row in results if row["setting"] == "T=1")
    opened = open_run(Path(arguments.ar))
    products = {}
    for size in sizes:
        seconds = size * judges.length / base["tokens_per_s"][str(size)]
        products[str(size)] = seconds_of_products(opened, judges.length, size) / seconds
    held_out = {**judges(judges.held_out), "kind": "held-out text"}
    said = sentences(results, sizes)
    content = {"length": judges.length, "held_out": held_out, "results": results, "sentences": said}
    write_json(arguments.out, {**content, "weight_products_over_autoregression": products})
    for line in said:
        console.print(line)


if __name__ == "__main__":
    main()
