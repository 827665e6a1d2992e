"""Options of `dit-video plan`."""

import argparse

from dit_video.cli.usage.arguments import add_config, command, local_path, positive, whole

EXAMPLES = """  dit-video plan --config=experiments/quickstart.py --target=cpu:16 --config.mesh.fsdp=4
  dit-video plan --config=experiments/grid_dit.py --target=v6e:4x4 --config.mesh.fsdp=16 --price_per_hour=2.7
  dit-video plan --config=experiments/grid_dit.py --target='v6e:16x16*2' --config.data.batch_size=512 --json
  dit-video plan --config=experiments/grid_dit.py --target=h100:2x8 --fit
  dit-video plan --config=experiments/quickstart.py --target=cpu:4 --program=generate --batch_size=4
  dit-video plan --config=experiments/grid_dit.py --target=v6e:4x4 --out=runs/grid_dit/plan.json

No accelerator is needed, and no trained codec. TPU targets need the extra plan-tpu, GPU targets plan-gpu; cpu:N needs
nothing and is an estimate on fake devices. What does not fit exits with 1 and says what would change that."""

# Programs that --fit compiles: a compilation for TPUs takes minutes.
NUM_TRIALS = 6


def add_parser(subparsers) -> None:
    parser = command(
        subparsers,
        "plan",
        "compile the train step, or what a task can do, for devices that are not there: memory, traffic, time",
        EXAMPLES,
    )
    add_config(parser)
    parser.add_argument(
        "--target",
        required=True,
        help="devices: v6e:16x16, v6e:16x16*4 (four slices), v5e:, v5p:8x8x4, tpu7x:, h100:16x8 (nodes x GPUs), a100:, "
        "h200:, b200:, or cpu:N",
    )
    parser.add_argument(
        "--program",
        default="train",
        metavar="NAME",
        help="train (default), what the task does: validate, generate, ..., or frame, the next one of a world",
    )
    parser.add_argument(
        "--batch_size", type=whole(1), metavar="N", help="clips of a call that is not the train step (16)"
    )
    parser.add_argument(
        "--hbm", type=positive, metavar="GIB", help="memory of a fake device (cpu:N), to see whether the program fits"
    )
    parser.add_argument(
        "--explain", action="store_true", help="show the ten places of the source that cost most, as file:line"
    )
    parser.add_argument("--price_per_hour", type=positive, metavar="P", help="of one device, for the cost of the run")
    parser.add_argument(
        "--fit",
        nargs="?",
        type=whole(1),
        const=NUM_TRIALS,
        metavar="N",
        help="look for the fastest remat x accumulation x mesh that fits, compiling at most N "
        f"(default {NUM_TRIALS}), and print it as overrides",
    )
    parser.add_argument(
        "--dump", type=local_path, metavar="DIR", help="save XLA's account of the program: text, buffers"
    )
    parser.add_argument(
        "--out",
        type=local_path,
        metavar="FILE",
        help="write the plan as JSON; RUN/plan.json is set against what was measured by `dit-video report`",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON and nothing else")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dit_video.cli.plan import main

    return main(arguments)
