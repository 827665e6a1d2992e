"""`dit-video --print-completion SHELL`: a script with which the Tab key completes commands, options and paths."""

import argparse
from typing import Any

SHELLS = ("bash", "zsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=_Print,
        help='print what makes Tab complete commands, options and paths: eval "$(dit-video --print-completion bash)"',
    )


class _Print(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        # Here, for nobody else needs it.
        import shtab

        _name_paths(parser, shtab.FILE)
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _name_paths(parser: argparse.ArgumentParser, completed_as: Any) -> None:
    """Marks the arguments of a parser and its commands that are paths, which the shell then completes."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _name_paths(command, completed_as)
        elif getattr(action.type, "__name__", "") in ("path", "local_path", "run_path", "path_text"):
            setattr(action, "complete", completed_as)  # noqa: B010 (an attribute that shtab reads)
