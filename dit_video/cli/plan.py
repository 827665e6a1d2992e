"""`dit-video plan`: memory, collectives and roofline of a program, compiled for devices that are not there."""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from dit_video.cli.arguments import experiment_of, use_fake_devices
from dit_video.config.json_file import write_json
from dit_video.distributed.hardware import GIB
from dit_video.distributed.targets import GPU_MEMORY_VARIABLE, GPUS, TPUS, Target, parse_target
from dit_video.plan.compile import Memory, Plan, plan
from dit_video.plan.programs import TRAIN, program_named
from dit_video.plan.search import Remedy, Trial, fastest, remedies, search
from dit_video.progress import Terminal, counted, headed
from dit_video.run.shapes import balanced

_NO_REMEDY = "No smaller batch and no other mesh would change that: take devices with more memory."
# A compilation for TPUs takes minutes.
NUM_REMEDIES = 3
# Of the source, that --explain shows.
NUM_PLACES = 10


def main(arguments: argparse.Namespace) -> int:
    target = parse_target(arguments.target)
    if arguments.price_per_hour is not None and target.chip is None:
        raise ValueError(f"--price_per_hour: {target.name} has no roofline to take a time from; name an accelerator")
    if arguments.fit is not None and target.chip is None:
        raise ValueError(f"--fit: {target.name} has no memory and no roofline to compare plans by; name an accelerator")
    if arguments.fit is not None and arguments.dump is not None:
        raise ValueError("--fit: --dump is of one program: give its overrides without --fit")
    if arguments.fit is not None and arguments.out is not None:
        raise ValueError("--fit: --out is of one plan: give its overrides without --fit")
    if arguments.fit is not None and arguments.program != TRAIN:
        raise ValueError(
            f"--fit: looks for the fastest train step, by what changes nothing else; leave it out with "
            f"--program={arguments.program}"
        )
    if arguments.hbm is not None:
        if target.chip is not None:
            raise ValueError(f"--hbm: the memory of {target.name} is known; it is for cpu:N, of which nothing is")
        target = dataclasses.replace(target, fake_memory=int(arguments.hbm * GIB))
    if arguments.fit is not None and arguments.explain:
        raise ValueError("--fit: --explain is of one program: give its overrides without --fit")
    prepare(target)
    experiment, price = experiment_of(arguments), arguments.price_per_hour
    program = program_named(arguments.program, experiment.task, arguments.batch_size)
    if arguments.fit is not None:
        tried = counted(search(experiment, target, limit=arguments.fit), "plans", total=arguments.fit, unit="plans")
        return report_fit(tuple(tried), price=price, as_json=arguments.json)
    shapes = balanced(experiment).by_shape() if arguments.program == TRAIN else (experiment,)
    num_places = NUM_PLACES if arguments.explain else 0
    plans = [plan(one, target, program, dump=arguments.dump, num_places=num_places) for one in shapes]
    # Of several shapes of batches that which takes the most memory is shown whole.
    most = max(range(len(plans)), key=lambda number: plans[number].memory.peak)
    found = plans[most]
    cures: Iterable[Remedy] = ()
    # Fake devices have no time that remedies could be put in order by.
    if found.memory.excess and target.chip is not None:
        cures = remedies(shapes[most], target, found, program, limit=NUM_REMEDIES)
        cures = counted(cures, "remedies", total=NUM_REMEDIES, unit="remedies")
    of_shapes = [(str(one), of_one) for one, of_one in zip(experiment.data.shapes, plans)] if len(plans) > 1 else []
    return report(found, tuple(cures), price=price, as_json=arguments.json, out=arguments.out, of_shapes=of_shapes)


def report(
    found: Plan,
    cures: tuple[Remedy, ...] = (),
    *,
    price: float | None = None,
    as_json: bool = False,
    out: Path | None = None,
    of_shapes: Sequence[tuple[str, Plan]] = (),
) -> int:
    """Prints a plan, and writes it as JSON to `out`; returns the exit code, 1 for one that does not fit.

    Args:
        of_shapes: plans by shape, where batches have several; `found` is then the one of them with the highest peak.
    """
    shapes_json = {"shapes": [{"shape": name} | to_json(one, price) for name, one in of_shapes]} if of_shapes else {}
    if out is not None:
        write_json(out, to_json(found, price) | shapes_json)
    if as_json:
        cures_json = {"remedies": [dataclasses.asdict(cure) for cure in cures]}
        print(json.dumps(to_json(found, price) | shapes_json | cures_json, indent=1))
    else:
        console = Terminal()
        if of_shapes:
            console.print(_shapes_table(of_shapes))
        show(found, price, console)
        _show_verdict(found, cures, console)
    return 1 if found.memory.excess else 0


def report_fit(trials: tuple[Trial, ...], *, price: float | None = None, as_json: bool = False) -> int:
    """Prints what `search` compiled and the best of it; returns the exit code, 1 where nothing fits."""
    best = fastest(trials)
    if as_json:
        plans = [
            {"overrides": t.overrides, "error": t.error, "plan": None if t.plan is None else to_json(t.plan, price)}
            for t in trials
        ]
        print(json.dumps({"best": None if best is None else trials.index(best), "compiled": plans}, indent=1))
        return 1 if best is None else 0
    console = Terminal()
    _show_trials(trials, console)
    if best is None or best.plan is None:
        console.print(headed("none of these fits", "bold red", ": take more devices, or such with more memory"))
        return 1
    show(best.plan, price, console)
    console.print("the fastest of these that fits:", style="bold green")
    console.print(f"  {_words(best)}")
    return 0


def prepare(target: Target) -> None:
    """Sets what JAX and its compilers read when they start. To be called before JAX computes anything."""
    jax.config.update("jax_platforms", "cpu")
    if target.family == "cpu":
        use_fake_devices(target.size[0])
    # The plug-in looks for libraries that only running on a GPU needs.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # libtpu must not ask the cloud which TPU this is, nor log that there is none.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_MIN_LOG_LEVEL="3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-8")
    # Compilers need no device, so that several may be loaded at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")


def to_json(found: Plan, price: float | None) -> dict[str, Any]:
    """All numbers of a plan as JSON values; bytes are those of one device."""
    best = found.binding
    data = dataclasses.asdict(found) | {
        "num_devices": found.num_devices,
        "fits": None if found.memory.hbm is None else not found.memory.excess,
        "excess_bytes": found.memory.excess,
        "estimate": _is_fake(found),  # fake devices: temporaries are the CPU compiler's
    }
    if best is not None:
        hours = found.device_hours()
        data["best_case"] = {
            "binding": best.name,
            f"{found.unit}_seconds": best.seconds,
            "seconds_in_turn": found.seconds_in_turn,
            "mfu": found.mfu,
            f"{found.counted}_per_second": found.clips / best.seconds,
            "tokens_per_second": found.tokens / best.seconds if found.tokens else None,
            "device_hours": hours,
            "cost": hours * price if hours is not None and price is not None else None,
        }
    return data


def show(found: Plan, price: float | None, console: Console) -> None:
    """Prints memory, traffic and roofline."""
    axes = " x ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1) or "one device"
    console.print(
        f"{found.program} of {found.clips:,} {found.counted} on {found.target}: {found.num_devices} x "
        f"{found.device_kind}, mesh {axes}; "
        f"lowered and compiled in {found.compile_seconds:.1f} s",
    )
    if _is_fake(found):
        console.print(
            "an estimate on fake devices: shardings, bytes of state and collectives are real, temporaries are those of "
            "the CPU compiler, whose choice of collectives and of what to fuse is another than an accelerator's",
        )
    console.print(_memory_table(found.memory))
    if found.traffic is not None:
        console.print(_traffic_table(found))
    if found.costliest:
        console.print(_places_table(found))
    again = f", {found.recomputed_flops:.4g} more computed twice" if found.recomputed_flops else ""
    console.print(f"model FLOPs of a {found.unit}, all devices: {found.flops:.4g}{again}")
    _show_time(found, price, console)


def _shapes_table(of_shapes: Sequence[tuple[str, Plan]]) -> Table:
    table = Table(title="shapes of batches; the one with the highest peak below")
    for column in ("frames x height x width", "clips", "peak", "FLOPs of a step", "at least, ms", "compiled in, s"):
        table.add_column(column, justify="right")
    for name, found in of_shapes:
        best = "" if found.binding is None else f"{found.binding.seconds * 1e3:.4g}"
        numbers = (f"{found.flops:.4g}", best, f"{found.compile_seconds:.1f}")
        table.add_row(name, f"{found.clips:,}", _size(found.memory.peak), *numbers)
    return table


def _memory_table(memory: Memory) -> Table:
    table = Table(title="memory of one device")
    for column in ("", "bytes", "of them on every device"):
        table.add_column(column, justify="right" if column else "left")
    for part in memory.parts:
        if part.bytes:
            table.add_row(part.name, _size(part.bytes), _size(part.whole) if part.whole else "")
    if memory.padding:
        table.add_row("padding of the above", _size(memory.padding), "")
    table.add_row("temporaries", _size(memory.temporaries), "")
    if memory.host:
        table.add_row("(in the memory of its host)", _size(memory.host), "")
    table.add_section()
    table.add_row("peak", _size(memory.peak), "")
    if memory.hbm is not None:
        table.add_row("of", _size(memory.hbm), "")
    return table


def _traffic_table(found: Plan) -> Table:
    assert found.traffic is not None
    table = Table(title=f"collectives of one {found.unit}; bytes that a device receives at least")
    for column in ("axes", "kind", "count", "bytes", f"from other {_domains(found)}"):
        table.add_column(column, justify="left" if column in ("axes", "kind") else "right")
    for item in found.traffic.collectives:
        outer = _size(item.outer_bytes) if item.outer_bytes else ""
        table.add_row(" x ".join(item.axes), item.kind, f"{item.count:,}", _size(item.inner_bytes), outer)
    if found.traffic.loops_of_unknown_length:
        table.caption = f"{found.traffic.loops_of_unknown_length} loops of unknown length are counted as one round"
    return table


def _places_table(found: Plan) -> Table:
    table = Table(title=f"places of the source that cost most in a {found.unit}; forward, again and backward together")
    for column in ("file:line", "bytes", "share"):
        table.add_column(column, justify="left" if column == "file:line" else "right")
    for place in found.costliest:
        table.add_row(place.source or "(added by the compiler)", _size(place.bytes), f"{place.share:.1%}")
    known = "cycles by libtpu's estimate, without attention" if found.target.startswith(TPUS) else "bytes"
    table.caption = f"shares of {known}"
    return table


def _show_time(found: Plan, price: float | None, console: Console) -> None:
    best = found.binding
    if best is None or found.mfu is None:
        return
    table = Table(title=f"a {found.unit} takes at least")
    for column in ("bound", "ms", "supposing"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for bound in found.bounds:
        name = f"{bound.name} (binds)" if bound is best else bound.name
        table.add_row(name, f"{bound.seconds * 1e3:.4g}", bound.supposes)
    console.print(table)
    tokens = f", {found.tokens / best.seconds:,.0f} tokens/s" if found.tokens else ""
    console.print(
        f"best case, all of these overlapped and nothing else: {best.seconds * 1e3:.4g} ms a {found.unit}, "
        f"MFU {found.mfu:.1%}, {found.clips / best.seconds:,.1f} {found.counted}/s{tokens}; "
        f"one after the other they take {found.seconds_in_turn * 1e3:.4g} ms",
    )
    hours = found.device_hours()
    if hours is not None:
        cost = "" if price is None else f"; {_amount(hours * price)} at {price:g} a device-hour"
        console.print(f"{found.job.name}: {_amount(hours)} device-hours at best{cost}")


def _show_verdict(found: Plan, cures: tuple[Remedy, ...], console: Console) -> None:
    memory = found.memory
    if memory.hbm is None:
        return
    if _domains(found) == "nodes":
        console.print(f"of a GPU's memory JAX takes three quarters, or what {GPU_MEMORY_VARIABLE} says")
    if not memory.excess:
        console.print(headed("fits", "bold green", f", {_size(memory.hbm - memory.peak)} to spare"))
        return
    console.print(
        headed(
            "does not fit",
            "bold red",
            f": {_size(memory.excess)} more than the {_size(memory.hbm)} of a device. "
            f"{'What would change that, one by one:' if cures else _NO_REMEDY}",
        )
    )
    for cure in cures:
        verdict = "not compiled"
        if cure.peak is not None:
            verdict = f"peak {_size(cure.peak)}: {'fits' if cure.fits else 'does not fit either'}"
        console.print(f"  {' '.join(cure.words)}")
        console.print(f"      {cure.reason} ({verdict})")
    if found.program == TRAIN and not any(cure.fits for cure in cures):
        console.print("Several at once may fit, or other meshes: --fit looks for them.")


def _show_trials(trials: tuple[Trial, ...], console: Console) -> None:
    table = Table(title="compiled, in the order of an estimate")
    for column in ("", "peak", "of", "step, ms", "MFU", "binds", "compiled in, s"):
        table.add_column(column, justify="left" if column == "binds" else "right")
    for number, trial in enumerate(trials, 1):
        console.print(f"{number}. {_words(trial)}")
        if trial.plan is None:
            console.print(f"   cannot be: {trial.error}")
            continue
        memory, best, mfu = trial.plan.memory, trial.plan.binding, trial.plan.mfu
        time = ("", "", "") if best is None or mfu is None else (f"{best.seconds * 1e3:.4g}", f"{mfu:.1%}", best.name)
        compiled = f"{trial.plan.compile_seconds:.0f}"
        table.add_row(str(number), _size(memory.peak), _size(memory.hbm or 0), *time, compiled)
    console.print(table)


def _words(trial: Trial) -> str:
    return " ".join(trial.overrides) or "the experiment as it is"


def _is_fake(found: Plan) -> bool:
    """Whether the devices are fake ones, whether or not their memory was given."""
    return found.memory.hbm is None or found.target.startswith("cpu")


def _domains(found: Plan) -> str:
    """What the slower network between devices connects: slices of TPUs, nodes of GPUs."""
    return "nodes" if found.target.partition(":")[0] in GPUS else "slices"


def _amount(number: float) -> str:
    """With two decimals, or two digits where these would be zeros."""
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"


def _size(number: int) -> str:
    unit, scale = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if number >= s), ("B", 1))
    return f"{number / scale:,.4g} {unit}"
