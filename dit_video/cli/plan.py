"""dit-video plan"""

import argparse
import dataclasses
import json
import os
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from dit_video.cli.arguments import add_config, command, experiment_of
from dit_video.plan import Memory, Plan, Target, parse_target, plan

EXAMPLES = """  dit-video plan --config=experiments/quickstart.py --target=cpu:16 --config.mesh.fsdp=4
  dit-video plan --config=experiments/grid_dit.py --target=v6e:4x4 --config.mesh.fsdp=16 --price_per_hour=2.7
  dit-video plan --config=experiments/grid_dit.py --target='v6e:16x16*4' --config.mesh.fsdp=64 --json

No accelerator is needed, and no trained codec. TPU targets need the extra plan-tpu; cpu:N needs nothing and is an
estimate on fake devices. What does not fit exits with 1 and says what would change that."""


def add_parser(subparsers) -> None:
    parser = command(
        subparsers,
        "plan",
        "compile the train step for devices that are not there: memory, traffic, time",
        EXAMPLES,
    )
    add_config(parser)
    parser.add_argument(
        "--target", required=True, help="devices: v6e:16x16, v6e:16x16*4 (four slices), v5e:, v5p:, tpu7x:, or cpu:N"
    )
    parser.add_argument("--price_per_hour", type=float, metavar="P", help="of one device, for the cost of the run")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    target = parse_target(arguments.target)
    if arguments.price_per_hour is not None and target.chip is None:
        raise ValueError(f"--price_per_hour: {target.name} has no roofline to take a time from; name an accelerator")
    prepare(target)
    return report(plan(experiment_of(arguments), target), price=arguments.price_per_hour, as_json=arguments.json)


def report(found: Plan, *, price: float | None = None, as_json: bool = False) -> int:
    """Prints a plan; returns the exit code, 1 for one that does not fit."""
    if as_json:
        print(json.dumps(to_json(found, price), indent=1))
    else:
        show(found, price, Console())
    return 1 if found.memory.excess else 0


def prepare(target: Target) -> None:
    """Settings that JAX and libtpu read once, when the backend starts: so nothing may have computed before."""
    jax.config.update("jax_platforms", "cpu")
    if target.family == "cpu":
        # Later flags win, so a number that the user's shell sets does not stand in the way.
        fake = f"--xla_force_host_platform_device_count={target.size[0]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fake}"
    # libtpu must not ask the cloud which TPU this is, nor log that there is none.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", TPU_MIN_LOG_LEVEL="3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-8")


def to_json(found: Plan, price: float | None) -> dict[str, Any]:
    """All numbers; bytes are of one device."""
    best = found.binding
    data = dataclasses.asdict(found) | {
        "num_devices": found.num_devices,
        "fits": None if found.memory.hbm is None else not found.memory.excess,
        "excess_bytes": found.memory.excess,
        "estimate": found.memory.hbm is None,  # fake devices: temporaries are the CPU compiler's
    }
    if best is not None:
        hours = found.device_hours()
        data["best_case"] = {
            "binding": best.name,
            "step_seconds": best.seconds,
            "mfu": found.mfu,
            "clips_per_second": found.clips / best.seconds,
            "tokens_per_second": found.tokens / best.seconds if found.tokens else None,
            "device_hours": hours,
            "cost": hours * price if hours is not None and price is not None else None,
        }
    return data


def show(found: Plan, price: float | None, console: Console) -> None:
    """Prints memory, traffic, roofline and verdict."""
    axes = " x ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1) or "one device"
    console.print(
        f"{found.target}: {found.num_devices} x {found.device_kind}, mesh {axes}; "
        f"lowered and compiled in {found.compile_seconds:.1f} s",
        highlight=False,
    )
    if found.memory.hbm is None:
        console.print(
            "an estimate on fake devices: shardings, bytes of state and collectives are real, temporaries are those of "
            "the CPU compiler, whose choice of collectives and of what to fuse is another than an accelerator's",
            highlight=False,
        )
    console.print(_memory_table(found.memory))
    if found.traffic is not None:
        console.print(_traffic_table(found))
    console.print(f"model FLOPs of a step, all devices: {found.flops:.4g}", highlight=False)
    _show_time(found, price, console)
    _show_verdict(found, console)


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
    table.add_section()
    table.add_row("peak", _size(memory.peak), "")
    if memory.hbm is not None:
        table.add_row("of", _size(memory.hbm), "")
    return table


def _traffic_table(found: Plan) -> Table:
    assert found.traffic is not None
    table = Table(title="collectives of one step; bytes that a device receives at least")
    for column in ("axes", "kind", "count", "bytes", "from other slices"):
        table.add_column(column, justify="left" if column in ("axes", "kind") else "right")
    for item in found.traffic.collectives:
        outer = _size(item.outer_bytes) if item.outer_bytes else ""
        table.add_row(" x ".join(item.axes), item.kind, f"{item.count:,}", _size(item.inner_bytes), outer)
    if found.traffic.loops_of_unknown_length:
        table.caption = f"{found.traffic.loops_of_unknown_length} loops of unknown length are counted as one round"
    return table


def _show_time(found: Plan, price: float | None, console: Console) -> None:
    best = found.binding
    if best is None or found.mfu is None:
        return
    table = Table(title="a step takes at least")
    for column in ("bound", "ms", "supposing"):
        table.add_column(column, justify="right" if column == "ms" else "left")
    for bound in found.bounds:
        name = f"{bound.name} (binds)" if bound is best else bound.name
        table.add_row(name, f"{bound.seconds * 1e3:.4g}", bound.supposes)
    console.print(table)
    tokens = f", {found.tokens / best.seconds:,.0f} tokens/s" if found.tokens else ""
    console.print(
        f"best case, all of these overlapped and nothing else: {best.seconds * 1e3:.4g} ms a step, "
        f"MFU {found.mfu:.1%}, {found.clips / best.seconds:,.1f} clips/s{tokens}",
        highlight=False,
    )
    hours = found.device_hours()
    if hours is not None:
        cost = "" if price is None else f"; {hours * price:,.2f} at {price:g} a device-hour"
        console.print(f"{found.num_steps:,} steps: {hours:,.2f} device-hours at best{cost}", highlight=False)


def _show_verdict(found: Plan, console: Console) -> None:
    memory = found.memory
    if memory.hbm is None:
        return
    if not memory.excess:
        console.print(f"[bold green]fits[/], {_size(memory.hbm - memory.peak)} to spare", highlight=False)
        return
    console.print(
        f"[bold red]does not fit[/]: {_size(memory.excess)} more than the {_size(memory.hbm)} of a device. "
        "In this order (none has been compiled; plan again with it):",
        highlight=False,
    )
    for override, reason in found.remedies:
        console.print(f"  {override}\n      {reason}", highlight=False, soft_wrap=True)


def _size(number: int) -> str:
    unit, scale = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if number >= s), ("B", 1))
    return f"{number / scale:,.4g} {unit}"
