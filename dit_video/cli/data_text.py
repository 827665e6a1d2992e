"""`dit-video data text`: text files into a set of tokens."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dit_video.config.components import to_json
from dit_video.data.record import Split
from dit_video.data.text_set import TextEntry, TextManifest
from dit_video.ingest.text import ingest_text
from dit_video.progress import Terminal, bar

_MOST_NAMED = 20


def run_text(arguments: argparse.Namespace) -> int:
    console = Terminal(stderr=arguments.json)
    with bar("files", console) as progress:
        task = progress.add_task("files", total=None)
        manifest = ingest_text(
            arguments.sources,
            arguments.out,
            tokenizer=arguments.tokenizer,
            field=arguments.field,
            held_out_fraction=arguments.held_out_fraction,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    noted = [entry for entry in manifest.entries if entry.reason or entry.notes]
    if arguments.json:
        print(json.dumps(_report(manifest, noted), indent=1))
        return 0
    table = Table(title="text")
    for column in ("split", "documents", "tokens", "bytes"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in Split:
        counts = (manifest.num_documents, manifest.num_tokens, manifest.num_bytes)
        table.add_row(split, *(f"{count.get(split.value, 0):,}" for count in counts))
    console.print(table)
    for entry in noted[:_MOST_NAMED]:
        what = f"left out: {entry.reason}" if entry.reason else entry.notes
        console.print(f"{entry.file}: {what}", style="yellow")
    if len(noted) > _MOST_NAMED:
        console.print(f"{len(noted) - _MOST_NAMED} more: see manifest.json")
    console.print(f"{arguments.out}: TextSet(directory={str(arguments.out)!r}, tokenizer={manifest.tokenizer!r})")
    return 0


def _report(manifest: TextManifest, noted: Sequence[TextEntry]) -> dict[str, Any]:
    counts = {"documents": manifest.num_documents, "tokens": manifest.num_tokens, "bytes": manifest.num_bytes}
    return {
        "splits": {str(split): {name: count.get(split.value, 0) for name, count in counts.items()} for split in Split},
        "tokenizer": to_json(manifest.tokenizer),
        "noted": [{"file": entry.file, "left_out": entry.reason, "notes": entry.notes} for entry in noted],
    }
