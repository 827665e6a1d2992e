"""Runs an ingest again and again, killed at one moment after another, until it comes to its end.

A program of its own: processes that may be killed are forked from one that has nothing but the imports. Moments are
numbers of the changes that it makes to the disk, as Python's audit hooks see them.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dit_video.data import tfds_sets as tfds_sets
from dit_video.ingest.extend import extend
from dit_video.ingest.ingest import ingest
from dit_video.ingest.transcoding import Transcoding

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def is_change(event: str, arguments: tuple) -> bool:
    if event == "open":
        mode = arguments[1]
        return isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return event in CHANGES


def run(out: Path, options: dict, moment: int | None) -> dict:
    """One process: it kills itself at the change of number `moment`; returns how it ended, and what it decoded."""
    end, begin = os.pipe()
    child = os.fork()
    if child == 0:
        changes, decoded = 0, 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal changes, decoded
            if event == "open" and str(arguments[0]).endswith("journal.jsonl") and arguments[1] == "a":
                decoded += 1
            if is_change(event, arguments):
                changes += 1
                if changes == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        if options.pop("add", False):
            extend(out=out, num_workers=1, **options)
        else:
            ingest(out=out, transcoding=Transcoding(num_workers=1), **options)
        os.write(begin, json.dumps({"changes": changes, "decoded": decoded}).encode())
        os._exit(0)
    os.close(begin)
    with os.fdopen(end, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return {"killed": os.WIFSIGNALED(status), "status": status, **json.loads(told or b"{}")}


def main(options: str, sets: str) -> None:
    """Of each set {folder: moments} prints how its runs ended, in a line.

    There is one run for each moment, and the last without one, where the set is not whole before.
    """
    for out, moments in json.loads(sets).items():
        told = []
        for moment in [*moments, None]:
            told.append({"moment": moment, **run(Path(out), json.loads(options), moment)})
            if not told[-1]["killed"]:
                break
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
