"""Results of tools/fault_bench.py: docs/reliability.json, and from there the tables of docs/reliability.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs/reliability.json"
PAGE = ROOT / "docs/reliability.md"


def recorded(part: str) -> dict[str, Any]:
    """Earlier results of a part; empty where there are none."""
    return json.loads(RESULTS.read_text()).get(part, {}) if RESULTS.exists() else {}


def record(part: str, measured: Mapping[str, Any], heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Saves the results of a part, and writes its table between the marks in the page."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {part: measured}, indent=1) + "\n")
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    page = PAGE.read_text()
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE}: no place for {part}; add the lines {begin.strip()} and {end.strip()}")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    lines = [line(heads), "|" + "---|" * len(heads), *map(line, rows)]
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + after)


def line(cells: Sequence[object]) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"
