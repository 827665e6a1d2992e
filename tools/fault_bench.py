"""Fault injection benchmark: kills, flipped bits, full disks, fuzzing; writes the tables of docs/reliability.md.

    python -m tools.fault_bench fuzz                      untrusted files: all families, 1000 cases each
    python -m tools.fault_bench fuzz safetensors --num_cases 100
    python -m tools.fault_bench fuzz video --case 17      one case again, in this process, with its traceback
    python -m tools.fault_bench strangers                 what others publish: configs, cards, tokenizers, tars, arrays
    python -m tools.fault_bench kills                     100 kills -9 over tiny runs: does each resume exactly?
    python -m tools.fault_bench points                    kills at every change of a run folder
    python -m tools.fault_bench flips                     flipped bits and cut files of a checkpoint: are they found?
    python -m tools.fault_bench errnos                    a store that fails while a checkpoint is read (needs cc)
    python -m tools.fault_bench states                    odd things in the places of locks, records and folders
    python -m tools.fault_bench saves                     how long a checkpoint holds training up
    python -m tools.fault_bench quota                     a run on a disk that fills up (needs the right to mount)

Counts go to docs/reliability.json, and from there into the page.
"""

import argparse
import sys
from collections.abc import Sequence

from tools import errno_bench, flip_bench, fuzz_bench, kill_bench, point_bench, save_bench, state_bench
from tools.reliability_page import line, record

NUM_KILLS = 100
NUM_FLIPS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for title, families in fuzz_bench.TABLES.items():
        fuzz = parts.add_parser(title, help="untrusted files")
        fuzz.add_argument("names", nargs="*", choices=[*families, []], help="default: all")
        fuzz.add_argument("--num_cases", type=int, help="of each; results of fewer than the default are not recorded")
        fuzz.add_argument("--case", type=int, help="this one only, here")
    kills = parts.add_parser("kills", help="runs that are killed")
    kills.add_argument("--num_kills", type=int, default=NUM_KILLS, help="results of fewer are not recorded")
    flips = parts.add_parser("flips", help="checkpoints whose files are damaged")
    flips.add_argument("--num_flips", type=int, default=NUM_FLIPS, help="of each kind of file; fewer are not recorded")
    parts.add_parser("errnos", help="a store that fails in reading")
    states = parts.add_parser("states", help="odd things in the places of locks, records and folders")
    states.add_argument("names", nargs="*", choices=[*state_bench.COMMANDS, []], help="commands; default: all")
    points = parts.add_parser("points", help="runs that are killed at each change of their folder")
    points.add_argument("--num_points", type=int, help="so many, evenly spaced; these are not recorded")
    parts.add_parser("saves", help="what a checkpoint costs")
    parts.add_parser("quota", help="a disk that fills up")
    args = parser.parse_args()
    if args.part == "kills":
        return run_kills(args.num_kills)
    if args.part == "points":
        return run_points(args.num_points)
    if args.part == "flips":
        return run_flips(args.num_flips)
    if args.part == "errnos":
        return run_errnos()
    if args.part == "states":
        return run_states(args.names)
    if args.part == "saves":
        return run_saves()
    if args.part == "quota":
        return run_quota()
    if args.case is not None:
        fuzz_bench.read_one(args.names[0], args.case)
        return 0
    return fuzz_bench.run(args.names or list(fuzz_bench.TABLES[args.part]), args.num_cases)


def run_kills(num_kills: int) -> int:
    measured = kill_bench.measure_kills(num_kills, print)
    _show(kill_bench.KILL_HEADS, kill_bench.kill_rows(measured))
    if num_kills >= NUM_KILLS:
        record("kills", measured, kill_bench.KILL_HEADS, kill_bench.kill_rows(measured))
    return 0 if measured["exact"] == measured["kills"] else 1


def run_points(num_points: int | None) -> int:
    measured = point_bench.measure(num_points)
    _show(point_bench.HEADS, point_bench.rows(measured))
    for point, what in measured["differences"].items():
        print(f"  change {point}: {what}")
    if num_points is None:
        record("points", measured, point_bench.HEADS, point_bench.rows(measured))
    return 1 if measured["differences"] else 0


def run_flips(num_flips: int) -> int:
    measured = flip_bench.measure(num_flips)
    _show(flip_bench.HEADS, flip_bench.rows(measured))
    if num_flips >= NUM_FLIPS:
        record("flips", measured, flip_bench.HEADS, flip_bench.rows(measured))
    return 1 if flip_bench.num_silent(measured) else 0


def run_errnos() -> int:
    rows = errno_bench.measure()
    _show(errno_bench.HEADS, rows)
    record("errnos", {"rows": rows}, errno_bench.HEADS, rows)
    return 1 if any(row[-1] for row in rows) else 0


def run_states(commands: Sequence[str]) -> int:
    measured = state_bench.measure(commands or tuple(state_bench.COMMANDS))
    _show(state_bench.HEADS, state_bench.rows(measured))
    for case, what in measured["faults"].items():
        print(f"  {case}: {what}")
    if not commands:
        record("states", measured, state_bench.HEADS, state_bench.rows(measured))
    return 1 if measured["faults"] else 0


def run_saves() -> int:
    measured = save_bench.measure()
    _show(save_bench.HEADS, save_bench.rows(measured))
    record("saves", measured, save_bench.HEADS, save_bench.rows(measured))
    return 0 if measured["share"] < save_bench.BOUND else 1


def run_quota() -> int:
    measured = kill_bench.measure_quota()
    rows = [[text] for text in measured["said"]]
    rows.append([f"exit code {measured['code']}; {kill_bench.compared(measured)}"])
    _show(kill_bench.QUOTA_HEADS, rows)
    record("quota", measured, kill_bench.QUOTA_HEADS, rows)
    return 0 if measured["code"] == 0 and measured["difference"] is None else 1


def _show(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    for cells in (heads, *rows):
        print(line(cells))


if __name__ == "__main__":
    sys.exit(main())
