"""`dit-video inspect`: lists the checkpoints of a run, its events, and where its time went."""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from dit_video import experiment as experiments
from dit_video.checkpoint.checkpoints import Checkpoints, DamagedCheckpoint
from dit_video.checkpoint.folder import Steps, steps_of
from dit_video.checkpoint.integrity import Contents, contents
from dit_video.cli.arguments import like_of
from dit_video.config.user_file import ExperimentError
from dit_video.data.dataset import Data
from dit_video.experiment import Experiment
from dit_video.progress import Terminal, bar
from dit_video.run.folder import EXPERIMENT_FILE, data_changes, describe_change, read_experiment
from dit_video.run.places import located
from dit_video.storage.bucket import address
from dit_video.storage.mirror import local_copy
from dit_video.training import events
from dit_video.training.goodput import Activity, read_goodput, summary

# The last that are shown.
_NUM_EVENTS = 10

GOOD, LOOKS_GOOD, DAMAGED = "good", "looks good", "damaged"


def main(arguments: argparse.Namespace) -> int:
    console = Terminal()
    like = like_of(arguments)
    workdir = local_copy(arguments.workdir, EXPERIMENT_FILE)
    experiment = read_experiment(workdir, like)
    found: dict[str, Any] = {
        "run": address(arguments.workdir) or str(arguments.workdir),
        "task": type(experiment.task).__name__,
        "fingerprint": experiments.fingerprint(experiment),
        "steps": [],
        "half_written": [],
        "set_aside": [dataclasses.asdict(aside) for aside in steps_of(workdir).aside()],
        "data_changes": data_changes(workdir),
        "events": [event.to_json() for event in events.read_events(workdir)],
        "seconds": {activity.value: spent for activity, spent in read_goodput(workdir).items()},
    }
    if steps_of(workdir).exists():  # opening makes it
        checkpoints = Checkpoints(workdir)
        try:
            found["steps"] = _steps(steps_of(workdir), checkpoints, like, verified=arguments.verify)
            found["half_written"] = checkpoints.unfinished
        finally:
            checkpoints.close()
    if arguments.verify:
        found["data"] = _verified(located(experiment, workdir / EXPERIMENT_FILE).data)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found, console)
    damaged = any(step["state"] == DAMAGED for step in found["steps"]) or any(found.get("data", {}).values())
    return 1 if damaged else 0


def _verified(data: Data) -> dict[str, str]:
    """What is wrong with each folder of data, nothing where it is good."""
    with bar("MB") as progress:
        task = progress.add_task("data", total=None)
        return data.verify(lambda num_bytes: progress.advance(task, num_bytes / 1e6))


def _steps(folder: Steps, checkpoints: Checkpoints, like: Experiment | None, *, verified: bool) -> list[dict[str, Any]]:
    steps = []
    with bar("arrays") as progress:
        for step in checkpoints.steps:
            line: dict[str, Any] = {"step": step}
            try:
                line |= {"bytes": folder.size(step)}
                inside = contents(checkpoints, step)
                line |= _described(inside, like)
                if verified:
                    task = progress.add_task(f"step {step}", total=inside.num_arrays)
                    checkpoints.verify(step, functools.partial(progress.advance, task))
                line |= {"state": GOOD if verified else LOOKS_GOOD}
            except DamagedCheckpoint as error:
                line |= {"state": DAMAGED, "damage": error.damage}
            except FileNotFoundError as error:
                line |= {"state": DAMAGED, "damage": str(error)}
            if folder.has(step):  # a training that goes on at this moment deletes old steps
                steps.append(line)
    return steps


def _described(inside: Contents, like: Experiment | None) -> dict[str, Any]:
    items = {
        name: {"arrays": item.num_arrays, "bytes": item.num_bytes, "digest": item.digest}
        for name, item in inside.items.items()
    }
    return {"next_batch": inside.next_batch, "fingerprint": _fingerprint(inside.experiment, like), "items": items}


def _fingerprint(saved: dict[str, Any] | None, like: Experiment | None) -> str | None:
    """None where the experiment was written by another version of this package."""
    try:
        return None if saved is None else experiments.fingerprint(experiments.from_json(saved, like))
    except ExperimentError:
        return None


def _show(found: dict[str, Any], console: Console) -> None:
    def show(text: str, style: str | None = None) -> None:
        console.print(text, style=style)

    show(f"{found['run']}: {found['task']}, experiment {found['fingerprint']}")
    if any(found["seconds"].values()):
        booked = {Activity(name): spent for name, spent in found["seconds"].items()}
        show(f"time so far, {summary(booked)}")
    for change in found["data_changes"]:
        show(f"other data from batch {change['batch']} on:")
        for line in describe_change(change):
            show(line)
    if found["events"]:
        _show_events([events.Event.from_json(event) for event in found["events"]], show)
    if not found["steps"]:
        show("no checkpoint")
    for step in found["steps"]:
        title = f"step {step['step']}: {step['state']}, {decimal(step['bytes'])} on disk"
        if "next_batch" in step:
            title += f", next batch {step['next_batch']}"
        if step.get("fingerprint", found["fingerprint"]) != found["fingerprint"]:
            title += f", of another experiment ({step['fingerprint'] or 'which this version cannot read'})"
        show(title, "red" if step["state"] == DAMAGED else None)
        for name, item in step.get("items", {}).items():
            digest = f"  weights {item['digest'][:16]}" if item["digest"] else ""
            show(f"  {name:10} {item['arrays']:5} arrays {decimal(item['bytes']):>12}{digest}")
        if "damage" in step:
            show(f"  damaged: {step['damage']}", "red")
    for folder, damage in found.get("data", {}).items():
        show(f"data in {folder}: {damage or GOOD}", "red" if damage else None)
    for name in found["half_written"]:
        show(f"half-written: {name} (a save that goes on at this moment, or one that was killed)")
    for line in found["set_aside"]:
        show(f"set aside: {line['folder']}, {decimal(line['bytes'])}, {line['found']}: {line['why']}")


def _show_events(known: list[events.Event], show: Callable[[str], None]) -> None:
    show(f"faults so far, {events.summary(known)}")
    if len(known) > _NUM_EVENTS:
        show(f"  {len(known) - _NUM_EVENTS} more before, in {events.FILE}")
    for event in known[-_NUM_EVENTS:]:
        back = "" if event.to is None else f" to step {event.to}, on with batch {event.next_batch}"
        show(f"  step {event.step}, batch {event.batch}: {event.kind}, {event.done}{back}: {'; '.join(event.what)}")
