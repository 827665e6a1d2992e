"""One line of a card for a paper, in Markdown and in LaTeX: value, interval, and what decides its scale.

A protocol is called by a published name (`protocol.PUBLISHED`) only where every field that the name fixes has its
value. Data and resolution are no part of a name, and stand beside it.
"""

from collections.abc import Mapping
from typing import Any

import dit_video
from dit_video.evaluation.card import Card
from dit_video.evaluation.protocol import PUBLISHED, USUAL_NUM_CLIPS

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_MARKDOWN = {character: f"\\{character}" for character in "\\`*_{}[]<>#|$"}


def protocol_name(protocol: Mapping[str, Any]) -> str | None:
    """The name under which a protocol was published; None of one that has none, or that differs in any field."""
    for published in PUBLISHED.values():
        if all(protocol.get(field) == value for field, value in published.fields().items()):
            return published.title
    return None


def markdown(card: Card) -> str:
    """A line of Markdown."""
    return f"{_escaped(_value(card), _MARKDOWN)} ({_escaped(_conditions(card), _MARKDOWN)})"


def latex(card: Card) -> str:
    """A line of LaTeX, for text mode; it needs no package."""
    return f"{_escaped(_value(card), _LATEX)} ({_escaped(_conditions(card), _LATEX)})"


def _value(card: Card) -> str:
    interval = card.get("interval")
    spread = "" if interval is None else f" [{interval['low']:.4g}, {interval['high']:.4g}]"
    return f"{protocol_name(card['protocol']) or card['metric']} = {card['value']:.4g}{spread}"


def _conditions(card: Card) -> str:
    """What decides the scale, and what was judged."""
    protocol, subject = card["protocol"], card["subject"]
    num_clips, size = protocol.get("num_clips"), protocol.get("size")
    parts = [
        "95 % interval" if card.get("interval") else None,
        f"N = {protocol.get('num_rows', num_clips)}",
        "too few to quote" if isinstance(num_clips, int) and num_clips < USUAL_NUM_CLIPS else None,
        _frames(protocol),
        f"{size[0]}x{size[1]}" if isinstance(size, list | tuple) and len(size) == 2 else None,
        f"{protocol.get('features')}, {protocol['resize']} resize"
        if "resize" in protocol
        else protocol.get("features"),
        "pairs of clips and reconstructions" if protocol.get("pairs") else None,
        f"real clips {str(protocol.get('content'))[:8]}",
        f"{subject.get('weights', '')} weights of step {subject['step']}".strip() if "step" in subject else None,
        f"dit_video {dit_video.__version__}",
    ]
    return ", ".join(part for part in parts if part)


def _frames(protocol: Mapping[str, Any]) -> str:
    if "num_rows" in protocol:
        return f"rows of {protocol.get('length')} tokens"
    stride, fps = protocol.get("stride"), protocol.get("fps")
    rate = f" at {fps:g} frames a second" if isinstance(fps, int | float) else ""
    return f"{protocol.get('num_frames')} frames{'' if stride is None else f' of stride {stride}'}{rate}"


def _escaped(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(character, character) for character in " ".join(text.split()))
