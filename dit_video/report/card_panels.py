"""Evaluation cards as drawings: samples with their interval on one axis with what they can be measured by.

Cards share an axis only where their protocols are equal; a second protocol is a second panel, which says in which
fields it differs.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dit_video.evaluation.card import Card, differing_scale, flat_protocol
from dit_video.evaluation.citation import latex, markdown
from dit_video.report.recorded_run import RecordedRun

_TRAINING, _STILL = "training clips", "training clips, first frame held still"
# What a person calls the rows, from the best that samples can reach to what is worse than any.
_OTHER_REFERENCE = "samples against training clips"
_MEANINGS = {
    _TRAINING: "other real clips: what chance leaves",
    "training clips through the codec": "what the codec loses",
    _STILL: "no motion at all",
    "samples, frames shuffled": "no order of time",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A value on the axis of a panel.

    Attributes:
        run: of samples, the index of their run; None for what they are measured by.
        interval: 95 % of what other clips would give; None of too few clips.
    """

    label: str
    meaning: str
    run: int | None
    value: float
    interval: tuple[float, float] | None
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """Cards of one protocol.

    Attributes:
        rows: from the least value to the greatest; samples are those of the last card of each run.
        others: for the table alone: samples of the cards before, and what was measured against other clips.
        top: end of the axis, which begins at 0.
        ticks: of the axis.
        apart: fields in which the protocol differs from that of the first panel.
        verdicts: in words where samples lie, one for each card.
        lines: of each card its name, and its line for a paper in Markdown and in LaTeX.
    """

    metric: str
    protocol: Mapping[str, Any]
    rows: Sequence[Row]
    others: Sequence[Row]
    top: float
    ticks: Sequence[float]
    apart: Sequence[str]
    verdicts: Sequence[str]
    notes: Sequence[str]
    measures: Sequence[tuple[str, Mapping[str, float]]]
    lines: Sequence[tuple[str, str, str]]


Named = tuple[int, str, Card]


def panels(runs: Sequence[RecordedRun]) -> list[Panel]:
    """Panels of all cards of all runs, one for each protocol."""
    groups: list[list[Named]] = []
    for index, run in enumerate(runs):
        for file in run.cards:
            subject = file.content["subject"]
            label = " ".join(str(part) for part in (run.name, _at(subject)) if part)
            named = (index, label, file.content)
            group = next((g for g in groups if not differing_scale(g[0][2], file.content)), None)
            groups.append([named]) if group is None else group.append(named)
    return [_panel(group, groups[0][0][2]) for group in groups]


def _panel(everything: Sequence[Named], first: Card) -> Panel:
    last = {run: card for run, _, card in sorted(everything, key=lambda named: named[2]["subject"].get("step") or 0)}
    group = [named for named in everything if last[named[0]] is named[2]]
    measured = list(_yardsticks(group))
    rows = [*_samples(group), *(row for row in measured if not row.label.startswith(_OTHER_REFERENCE))]
    top = _top(max(row.interval[1] if row.interval else row.value for row in rows))
    card = group[0][2]
    return Panel(
        metric=card["metric"],
        protocol=flat_protocol(card["protocol"]),
        rows=sorted(rows, key=lambda row: row.value),
        others=[
            *_samples([named for named in everything if last[named[0]] is not named[2]]),
            *(row for row in measured if row.label.startswith(_OTHER_REFERENCE)),
        ],
        top=top,
        ticks=[top * part / 4 for part in range(5)],
        apart=differing_scale(first, card),
        verdicts=[sentence for _, label, c in group if (sentence := verdict(label, c))],
        notes=list(dict.fromkeys(note for _, _, c in everything for note in c.get("notes", ()))),
        measures=[(label, c["measures"]) for _, label, c in everything if c.get("measures")],
        lines=[(label, markdown(c), latex(c)) for _, label, c in group],
    )


def verdict(label: str, card: Card) -> str | None:
    """Where samples lie between other real clips and held frames; None of a card without these."""
    yardsticks = card.get("yardsticks", {})
    if _TRAINING not in yardsticks or _STILL not in yardsticks:
        return None
    real, still = (yardsticks[name]["value"] for name in (_TRAINING, _STILL))
    if still <= real:
        return None
    share = (card["value"] - real) / (still - real)
    return f"{label}: {share:.0%} of the way from real clips ({real:.4g}) to held first frames ({still:.4g})"


def _samples(group: Sequence[Named]) -> list[Row]:
    return [_row(label, "the samples of this run", run, card) for run, label, card in group]


def _yardsticks(group: Sequence[Named]) -> Iterable[Row]:
    """Yardsticks and companions of the cards; those of the same name and value once."""
    seen: set[tuple[str, float]] = set()
    for index, label, card in group:
        for part in ("yardsticks", "companions"):
            for name, measured in card.get(part, {}).items():
                of_samples = part == "companions"
                if (name, measured["value"]) in seen:
                    continue
                seen.add((name, measured["value"]))
                mine = f"{name} ({label})" if len(group) > 1 and (of_samples or _differs(name, group)) else name
                yield dataclasses.replace(_row(mine, _MEANINGS.get(name, ""), index, measured), run=None)


def _differs(name: str, group: Sequence[Named]) -> bool:
    return len({card.get("yardsticks", {}).get(name, {}).get("value") for _, _, card in group}) > 1


def _row(label: str, meaning: str, run: int, measured: Mapping[str, Any]) -> Row:
    interval, limit = measured.get("interval"), measured.get("limit")
    return Row(
        label=label,
        meaning=meaning,
        run=run,
        value=measured["value"],
        interval=None if interval is None else (interval["low"], interval["high"]),
        limit=limit["value"] if limit and limit["settled"] else None,
    )


def _at(subject: Mapping[str, Any]) -> str:
    step, weights = subject.get("step"), subject.get("weights")
    return "" if step is None else f"step {step}{'' if weights in (None, 'ema') else f', {weights} weights'}"


def _top(greatest: float) -> float:
    """The next of 1, 2, 2.5, 4, 5 or 8 times a power of ten: ticks at its quarters are short numbers."""
    if not 0 < greatest < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(greatest))
    return next(power * head for head in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10) if power * head >= greatest)
