"""dit-video evaluate compare: cards side by side, ranked only where they may be"""

import argparse
import itertools
import json
from pathlib import Path

from rich.console import Console

from dit_video.cli.arguments import command
from dit_video.evaluation.card import Card, differing_scale, read_card, table

EXAMPLES = """  dit-video evaluate compare runs/{a,b,c}/evaluation/step_0005000_ema_fvd.json
      ranks cards of one protocol; refuses others and says in which fields they differ (exit code 1)"""


def add_parser(commands) -> None:
    parser = command(commands, "compare", "rank cards whose protocols are equal; refuse others", EXAMPLES)
    parser.add_argument("cards", nargs="+", type=Path, metavar="CARD.json")
    parser.add_argument("--json", action="store_true", help="print the ranking as JSON and nothing else")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    if len(arguments.cards) < 2:
        raise ValueError(f"{arguments.cards[0]}: one card has nothing to be compared with; name two or more")
    cards = {str(path): read_card(path) for path in arguments.cards}
    if len(cards) < len(arguments.cards):
        raise ValueError("evaluate compare: one card is named twice")
    console = Console(stderr=arguments.json)
    console.print(table(list(cards.values())))
    first = next(iter(cards))
    for path, card in cards.items():
        if fields := differing_scale(cards[first], card):
            raise ValueError(
                f"{path} cannot be ranked with {first}: they differ in {', '.join(fields)}; "
                "evaluate both with the same real clips and settings"
            )
    ranked = sorted(cards.items(), key=lambda item: item[1]["value"])
    if arguments.json:
        print(json.dumps([{"card": path, "value": card["value"]} for path, card in ranked], indent=1))
        return 0
    for place, (path, card) in enumerate(ranked, 1):
        console.print(f"{place}. {path}: {card['value']:.2f}", highlight=False)
    for (path, better), (worse_path, worse) in itertools.pairwise(ranked):
        if not _apart(better, worse):
            console.print(
                f"{path} and {worse_path}: each value lies within the other's interval, which other clips of as many "
                "would move them by; judge more clips to tell them apart",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )
    return 0


def _apart(better: Card, worse: Card) -> bool:
    """Whether one of the values lies outside the other's interval; cards of few clips have none."""
    intervals = better.get("interval"), worse.get("interval")
    if intervals[0] is None or intervals[1] is None:
        return False
    return worse["value"] > intervals[0]["high"] or better["value"] < intervals[1]["low"]
