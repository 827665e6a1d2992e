"""Evaluation cards: a metric's value with the protocol that decides its scale and the subject that was evaluated.

    {"metric": "FVD", "value": 123.4, "interval": {"low": ..., "high": ..., "level": 0.95},
     "mean_term": ..., "covariance_term": ..., "kernel_distance": ...,
     "limit": {"value": ..., "bias": ..., "interval": {...}, "settled": true},
     "protocol": {digests of real clips and network weights; clips, frames, stride, fps, size, crop, resize, pairs},
     "subject": {digests of checkpoint and codec; step, EMA or raw, sampler, guidance, seed, versions, hardware, ...},
     "references": {digests of set and splits, where real clips come from},
     "yardsticks": {"training clips": {"value": 45.6, ...}, ...},
     "companions": {"samples, frames shuffled": {"value": 150.1, ...}, ...},
     "measures": {"novelty": 0.97, ...}, "nearest": {"clip": [...], "distance": [...]}, "notes": ["..."]}

`yardsticks` are other sets against the same held-out clips, `companions` the same samples changed or against other
clips.

Two values may be compared only where their protocols are equal, field by field.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dit_video.config.json_file import read_object, write_json
from dit_video.evaluation.distance import Distance
from dit_video.evaluation.protocol import USUAL_NUM_CLIPS
from dit_video.weights.digest import FORM

Card = Mapping[str, Any]
Named = tuple[str, Card]


def make_card(
    *,
    metric: str,
    distance: Distance,
    protocol: Mapping[str, Any],
    subject: Mapping[str, Any],
    references: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes a card of a value and its protocol; one with few clips (`num_clips`) gets a warning note.

    Args:
        references: where real clips come from; informative, not part of the comparison of protocols.
    """
    note = small_sample_note(metric, protocol["num_clips"], distance)
    return {
        "metric": metric,
        **distance.as_json(),
        "protocol": protocol,
        "subject": subject,
        "references": references,
        "yardsticks": {},
        "companions": {},
        "measures": {},
        "notes": [*([note] if note else []), *notes],
    }


def finished(card: Card) -> dict[str, Any]:
    """Normalises a card to plain JSON, as it comes back from its file: tuples become lists, keys strings.

    Raises:
        TypeError: a field is not a JSON value.
        ValueError: a number is not finite.
    """
    return json.loads(json.dumps(card, allow_nan=False))


def small_sample_note(metric: str, num_clips: int, distance: Distance) -> str | None:
    """Warning note for a Frechet distance of too few clips; None where they are enough."""
    if num_clips >= USUAL_NUM_CLIPS:
        return None
    if distance.limit is None:
        bias = "biased upwards, mostly bias"
    elif distance.limit.bias <= 0:
        bias = "biased upwards by what these clips do not show"
    else:
        least = "" if distance.limit.settled else "at least "
        bias = f"biased upwards by about {least}{distance.limit.bias:.3g}"
    return (
        f"smoke value: {metric} at N={num_clips} is {bias}, which falls as 1/N; "
        f"compare it only at equal N, and quote none below N={USUAL_NUM_CLIPS}"
    )


def write_card(path: Path, card: Card) -> None:
    """Writes a card to a JSON file atomically."""
    write_json(path, finished(card))


def read_card(path: Path) -> dict[str, Any]:
    """Reads a card that `write_card` wrote.

    Raises:
        ValueError: the file is not a card.
    """
    try:
        card = read_object(path)
    except ValueError as error:
        raise ValueError(f"{error}; it is not a card") from None
    missing = {"metric", "value", "protocol", "subject"} - card.keys()
    if missing:
        raise ValueError(f"{path}: not a card, because it has no {', '.join(sorted(missing))}")
    if wrong := [name for name, fits in _FIELDS.items() if name in card and not fits(card[name])]:
        raise ValueError(f"{path}: not a card, because its {', '.join(wrong)} is of another kind")
    return card


# No distance is as large; a whole number may be larger than any float.
_MOST = 1e15
# Distances of equal sets may be below 0 by rounding.
_ROUNDING = -1e-3


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and -_MOST < value < _MOST


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_distance(value: Any) -> bool:
    return _is_number(value) and value >= _ROUNDING


def _is_interval(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(_is_number(value.get(end)) for end in ("low", "high")))


def _is_measured(value: Any) -> bool:
    return isinstance(value, Mapping) and _is_number(value.get("value")) and _is_interval(value.get("interval"))


def _is_limit(value: Any) -> bool:
    settled = _is_measured(value) and isinstance(value.get("settled"), bool)
    return value is None or (settled and value.get("interval") is not None)


def _all_are(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, Mapping) and all(map(fits, values.values()))


def _is_references(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("training clips"), str | None)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# What is read of a card by who compares it, and what it has to be.
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "metric": lambda value: isinstance(value, str),
    "value": _is_distance,
    "protocol": lambda value: isinstance(value, Mapping),
    "subject": lambda value: isinstance(value, Mapping),
    "references": _is_references,
    "interval": _is_interval,
    **dict.fromkeys(("mean_term", "covariance_term", "kernel_distance"), _is_number_or_null),
    "limit": _is_limit,
    **dict.fromkeys(("yardsticks", "companions"), _all_are(_is_measured)),
    "measures": _all_are(_is_number_or_null),
    "notes": _is_texts,
}


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields in which two protocols (or two subjects) differ; empty where they are equal."""
    a, b = _flat(a), _flat(b)
    # A field that only one of them has differs, whatever its value; None is a value.
    return sorted(name for name in a.keys() | b.keys() if (name in a, a.get(name)) != (name in b, b.get(name)))


def table(cards: Sequence[Card], names: Sequence[str] | None = None) -> Group:
    """Comparison tables of cards: one for each protocol, and never two protocols in one.

    A column is one card, headed by its name and the fields in which the subjects of its table differ. Further tables
    say in which fields their protocol differs from the first one's.
    """
    shown: list[Table | Text] = []
    groups = _by_protocol(list(zip(names or [card["metric"] for card in cards], cards, strict=True)))
    first_of_all = groups[0][0][1]
    for group in groups:
        shown.append(_table_of_equals(group))
        # No caption of the table, which would be broken to its width.
        protocol = flat_protocol(group[0][1]["protocol"])
        shown.append(Text(", ".join(f"{name}={value}" for name, value in protocol.items()), style="italic"))
        differing = differing_scale(first_of_all, group[0][1])
        if differing:
            shown.append(Text(f"not comparable with the first table: {', '.join(differing)}", style="bold"))
        notes = dict.fromkeys(note for _, card in group for note in card.get("notes", ()))
        if len({card.get("references", {}).get("training clips") for _, card in group} - {None}) > 1:
            notes["these cards know different training clips: rows that name them, and novelty, do not compare"] = None
        shown += [Text(note, style="yellow") for note in notes]
    return Group(*shown)


def _table_of_equals(named: Sequence[Named]) -> Table:
    cards = [card for _, card in named]
    shown = Table(title=cards[0]["metric"])
    shown.add_column("set")
    for heading in _headings(named):
        shown.add_column(heading, justify="right")
    shown.add_row("samples", *[_with_interval(card) for card in cards])
    for part in ("mean_term", "covariance_term"):
        shown.add_row(f"  {part.replace('_', ' ')}", *[_number(card.get(part)) for card in cards])
    shown.add_row("  extrapolated to N = infinity", *[_limit(card.get("limit")) for card in cards])
    shown.add_row("  kernel distance (unbiased)", *[_number(card.get("kernel_distance"), 4) for card in cards])
    for part in ("companions", "yardsticks"):
        for name in dict.fromkeys(name for card in cards for name in card.get(part, ())):
            shown.add_row(name, *[_with_interval(card.get(part, {}).get(name)) for card in cards])
    for name in dict.fromkeys(name for card in cards for name in card.get("measures", ())):
        shown.add_row(name, *[_number(card.get("measures", {}).get(name), 3) for card in cards])
    return shown


def _limit(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    return _with_interval(measured) if measured["settled"] else f"below {_number(measured['interval']['high'])}"


def _with_interval(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    interval = measured.get("interval")
    if interval is None:
        return _number(measured["value"])
    return f"{_number(measured['value'])} [{_number(interval['low'])}, {_number(interval['high'])}]"


def _number(value: float | int | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _by_protocol(named: Sequence[Named]) -> list[list[Named]]:
    groups: list[list[Named]] = []
    for name, card in named:
        for group in groups:
            if not differing_scale(group[0][1], card):
                group.append((name, card))
                break
        else:
            groups.append([(name, card)])
    return groups


def differing_scale(a: Card, b: Card) -> list[str]:
    """Fields that make two values incomparable: the metric and the protocol."""
    metric = [] if a["metric"] == b["metric"] else ["metric"]
    return metric + differing_fields(a["protocol"], b["protocol"])


def _headings(named: Sequence[Named]) -> list[str]:
    """Column headings: each card's name, and the fields in which its subject differs from the others."""
    subjects = [_flat(card["subject"]) for _, card in named]
    first = named[0][1]["subject"]
    differing = dict.fromkeys(name for _, card in named[1:] for name in differing_fields(first, card["subject"]))
    return [
        "\n".join([name, *(f"{field}={_short(subject.get(field))}" for field in differing)])
        for (name, _), subject in zip(named, subjects)
    ]


def flat_protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a protocol by dotted name, as people read them: digests are shortened."""
    return {name: _short(value) for name, value in _flat(protocol).items()}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    """Shortens digests; other values are unchanged."""
    text = str(value)
    digits = text.removeprefix(FORM)
    is_digest = len(digits) >= 32 and set(digits) <= set("0123456789abcdef")
    return digits[:8] if is_digest else text
