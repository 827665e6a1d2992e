"""`dit-video evaluate compare`: ranks evaluation cards whose protocols are equal."""

import argparse
import itertools
import json
import math
from typing import Any

from dit_video.evaluation.card import Card, differing_scale, read_card, table
from dit_video.progress import Terminal


def main(arguments: argparse.Namespace) -> int:
    if len(arguments.cards) < 2:
        raise ValueError(f"{arguments.cards[0]}: one card has nothing to be compared with; name two or more")
    cards = {str(path): read_card(path) for path in arguments.cards}
    if len(cards) < len(arguments.cards):
        raise ValueError("evaluate compare: one card is named twice")
    console = Terminal(stderr=arguments.json)
    console.print(table(list(cards.values()), list(cards)))
    first = next(iter(cards))
    for path, card in cards.items():
        if fields := differing_scale(cards[first], card):
            raise ValueError(
                f"{path} cannot be ranked with {first}: they differ in {', '.join(fields)}; "
                "evaluate both with the same real clips and settings"
            )
    ranked = sorted(cards.items(), key=lambda item: item[1]["value"])
    if arguments.json:
        print(json.dumps([{"card": path, **_in_short(card)} for path, card in ranked], indent=1))
        return 0
    for place, (path, card) in enumerate(ranked, 1):
        console.print(f"{place}. {path}: {card['value']:.2f}")
    for (path, better), (worse_path, worse) in itertools.pairwise(ranked):
        doubt = _doubt(better, worse)
        if doubt:
            console.print(f"{path} and {worse_path}: {doubt}", style="yellow")
    return 0


def _in_short(card: Card) -> dict[str, Any]:
    return {"value": card["value"], "interval": card.get("interval")}


def _doubt(better: Card, worse: Card) -> str:
    """Why the order of two values may be chance; empty where it is not."""
    if not (better.get("interval") and worse.get("interval")):
        return "of too few clips to say whether their order is chance; judge more clips"
    # Errors of independent values add in squares.
    reach = math.hypot(*((c["interval"]["high"] - c["interval"]["low"]) / 2 for c in (better, worse)))
    if worse["value"] - better["value"] > reach:
        return ""
    return f"they differ by less than the {reach:.3g} that other clips, as many, would move them by; judge more clips"
