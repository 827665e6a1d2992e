"""Judges of text: bits per byte of held-out text, and of samples under an n-gram model, with guards of their variety.

A low number under a judge is no quality by itself: text that repeats what is likely has one, and a sampler can be
driven there. So a set of samples is judged together with how various it is, and one that fails a guard is marked: it
counts as equal to nothing.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dit_video.config.bounds import at_least
from dit_video.data.dataset import Data
from dit_video.data.record import Split
from dit_video.data.text_tokens import TOKENS
from dit_video.evaluation.card import finished
from dit_video.evaluation.ngram import KneserNey
from dit_video.evaluation.text_judge import TrainedJudge, check_same_tokens, judged_rows, spelled
from dit_video.tasks.evaluator import EvaluationData, Evaluator, Report
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, LIKELIHOOD, Task
from dit_video.weights.digest import weights_digest

Rows = Int[np.ndarray, "_ L"]
# How far a sample set may be from held-out text, as a share of that: of entropies and counts, either way; of spelling
# and repetition on the worse side.
GUARDS: Mapping[str, float] = {
    "unigram entropy": 0.01,
    "4-gram entropy": 0.03,
    "distinct 4-grams": 0.03,
    "repetition": 0.10,
    "spelling": 0.05,
}
_WORD = re.compile(r"[^\W\d_]+")
_LEVEL = 1.96


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerByte(Evaluator):
    """Bits per byte of held-out text: exact of an autoregressive model, a bound of others, with fixed keys."""

    needs = (LIKELIHOOD,)

    num_clips: int = 256
    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 2, "num_clips")
        at_least(self, 1, "batch_size")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        size, rows = subject.batch_size(self.batch_size), []
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size), "held-out text")
            found = subject(LIKELIHOOD, batch, keys)
            rows.append(np.stack([found[name][:valid] for name in ("nats", "bytes", "tokens")]))
        nats, num_bytes, tokens = np.concatenate(rows, axis=1).astype(float)
        value, half = _ratio(nats / math.log(2), num_bytes)
        card = _card(
            "bits per byte of held-out text",
            value,
            half,
            protocol=_protocol(data, self.num_clips),
            subject=_described(subject, seed),
            data=data,
        )
        scalars = {"bits_per_byte": value, "nats_per_token": float(nats.sum() / tokens.sum())}
        return Report(scalars=scalars, cards={"bits per byte": finished(card)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledText(Evaluator):
    """Bits per token of samples under a Kneser-Ney n-gram model of the training text, and guards of their variety.

    With a `judge` there is a card of its own before, of bits per byte under that run.

    Attributes:
        num_training: rows of training text that the n-gram model is counted in.
        order: of the n-grams.
        judge: an autoregressive run that judges the same samples.
    """

    needs = (GENERATE, LIKELIHOOD)

    num_clips: int = 256
    batch_size: int = 16
    num_training: int = 4096
    order: int = 6
    judge: TrainedJudge | None = None

    def __post_init__(self):
        super().__post_init__()
        at_least(self, 2, "num_clips")
        at_least(self, 1, "batch_size", "num_training", "order")

    def num_judged(self) -> Mapping[Split, int]:
        return {Split.HELD_OUT: self.num_clips}

    def check(self, task: Task, data: Data) -> None:
        super().check(task, data)
        if self.judge is not None:
            self.judge.check()

    def __call__(self, subject: Subject, data: EvaluationData, seed: int) -> Report:
        size, made, real = subject.batch_size(self.batch_size), [], []
        for number, (batch, valid) in enumerate(data.batches(Split.HELD_OUT, self.num_clips, size)):
            keys = clip_keys(seed, range(number * size, (number + 1) * size))
            made.append(np.asarray(subject(GENERATE, batch, keys, data.shape))[:valid])
            real.append(np.asarray(batch.signals[TOKENS].tokens)[:valid])
        samples, held_out = np.concatenate(made), np.concatenate(real)
        training = np.concatenate(list(self._training(data, size)))
        report = self.under_n_grams(subject, data, seed, samples, held_out, training)
        if self.judge is None:
            return report
        card = self._under_judge(self.judge, subject, data, seed, samples, held_out)
        card["notes"] += report.cards["sampled text"]["notes"]
        scalars = {"judged bits per byte": card["value"], **report.scalars}
        return Report(scalars=scalars, cards={"judged text": finished(card), **report.cards})

    def _under_judge(
        self, named: TrainedJudge, subject: Subject, data: EvaluationData, seed: int, samples: Rows, held_out: Rows
    ) -> dict[str, Any]:
        judge, digest = named.open(data.open_run)
        check_same_tokens(subject, judge, samples, named.run)
        (value, half), (of_real, _) = (_ratio(*judged_rows(judge, x, self.batch_size)) for x in (samples, held_out))
        card = _card(
            "bits per byte under an autoregressive run",
            value,
            half,
            protocol={**_protocol(data, self.num_clips), "judge": digest},
            subject=_described(subject, seed),
            data=data,
        )
        card["references"] |= {"judge": {name: judge.description.get(name) for name in ("run", "fingerprint")}}
        card["yardsticks"] = {"held-out text": {"value": of_real}}
        if card["subject"]["digest"] == digest:
            card["notes"] = ["the judge is the run itself, which finds its own errors likely"]
        return card

    def under_n_grams(
        self, subject: Subject, data: EvaluationData, seed: int, samples: Rows, held_out: Rows, training: Rows
    ) -> Report:
        """The card of sampled rows, held-out ones beside them."""
        size = int(max(rows.max() for rows in (samples, held_out, training))) + 1
        model = KneserNey(training, size, self.order)
        (value, half), (of_real, _) = (
            _ratio(model.bits(x).sum(1), np.full(len(x), x.shape[1])) for x in (samples, held_out)
        )
        texts = [spelled(subject, rows) for rows in (samples, held_out, training)]
        of_samples, of_held_out = (variety(rows, text, texts[2]) for rows, text in zip((samples, held_out), texts))
        failed = failed_guards(of_samples, of_held_out)
        protocol = {**_protocol(data, self.num_clips), "training": data.digest(Split.TRAIN, len(training))}
        card = _card(
            f"bits per token under a {model.order}-gram",
            value,
            half,
            protocol={**protocol, "num_training": len(training), "order": model.order},
            subject=_described(subject, seed),
            data=data,
        )
        card["yardsticks"] = {"held-out text": {"value": of_real}}
        card["measures"] = {**of_samples, **{f"{name} of held-out text": x for name, x in of_held_out.items()}}
        card["notes"] = [f"guard failed, so this is equal in quality to nothing: {line}" for line in failed]
        scalars = {"n-gram bits": value, "n-gram bits of held-out text": of_real, "guards failed": len(failed)}
        scalars |= of_samples
        return Report(scalars=scalars, cards={"sampled text": finished(card)})

    def _training(self, data: EvaluationData, size: int) -> Iterator[Rows]:
        """`num_training` rows of training text, halved until the set has so many."""
        there = self.num_training
        while there:
            try:
                rows = list(data.batches(Split.TRAIN, there, size))
            except ValueError:  # there are fewer
                there //= 2
                continue
            yield from (np.asarray(batch.signals[TOKENS].tokens)[:valid] for batch, valid in rows)
            return


def variety(rows: Rows, texts: str, known: str) -> dict[str, float]:
    """How various rows of text are, by the names of `GUARDS`.

    Args:
        texts: what the rows spell.
        known: text whose words are taken as spelt well.
    """
    grams = np.lib.stride_tricks.sliding_window_view(rows, 4, axis=1)
    distinct = [len(np.unique(row, axis=0)) / len(row) for row in grams]
    words, vocabulary = _WORD.findall(texts), set(_WORD.findall(known))
    return {
        "unigram entropy": _entropy(rows.reshape(-1, 1)),
        "4-gram entropy": _entropy(grams.reshape(-1, 4)),
        "distinct 4-grams": len(np.unique(grams.reshape(-1, 4), axis=0)) / (grams.size // 4),
        "repetition": 1 - float(np.mean(distinct)),
        "spelling": sum(word in vocabulary for word in words) / max(1, len(words)),
    }


def failed_guards(samples: Mapping[str, float], held_out: Mapping[str, float]) -> list[str]:
    """The guards that a sample set fails, with both numbers; none where it is as various as held-out text."""
    lines = []
    for name, share in GUARDS.items():
        off = (samples[name] - held_out[name]) / max(held_out[name], 1e-9)
        worse = {"repetition": off, "spelling": -off}.get(name, abs(off))
        if worse > share:
            lines.append(
                f"{name} {samples[name]:.4g}, of held-out text {held_out[name]:.4g}, more than {share:.0%} off"
            )
    return lines


def _entropy(grams: Int[np.ndarray, "m n"]) -> float:
    """Bits of the distribution of rows."""
    _, counts = np.unique(grams, axis=0, return_counts=True)
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())


def _ratio(numerators: Float[np.ndarray, "n"], denominators: np.ndarray) -> tuple[float, float]:
    """Ratio of sums over rows, and half its 95 % interval for other rows (the delta method)."""
    value = numerators.sum() / denominators.sum()
    errors = (numerators - value * denominators) / denominators.mean()
    return float(value), float(_LEVEL * errors.std(ddof=1) / len(errors) ** 0.5)


def _protocol(data: EvaluationData, num_clips: int) -> dict[str, Any]:
    return {"content": data.digest(Split.HELD_OUT, num_clips), "num_rows": num_clips, "length": data.shape[0]}


def _described(subject: Subject, seed: int) -> dict[str, Any]:
    weights = {"step": subject.step, "weights": "ema" if subject.ema else "raw", "seed": seed}
    return {**subject.description, **weights, "digest": weights_digest(subject.params)}


def _card(
    metric: str,
    value: float,
    half: float,
    *,
    protocol: Mapping[str, Any],
    subject: Mapping[str, Any],
    data: EvaluationData,
) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": value,
        "interval": {"low": value - half, "high": value + half, "level": 0.95},
        "protocol": protocol,
        "subject": subject,
        "references": dict(data.references),
        "yardsticks": {},
        "measures": {},
        "notes": [],
    }
