"""The flags of `python -m tools.weights`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import run_command
from utils.log import console


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    args = _parser().parse_args(argv)
    with console():
        return run_command(lambda: args.run(args), debug=args.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights",
        description="List, fetch and check published weights; keep the weights of a file alone.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    clean = commands.add_parser("clean", help="write the tensors of a checkpoint, without what else it holds")
    clean.add_argument("input", type=Path, metavar="IN", help="any checkpoint; nothing in it is run")
    clean.add_argument("out", type=Path, metavar="OUT", help="a new file")
    clean.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    clean.set_defaults(run=_clean)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show where an error arose")
    return parser


def _clean(args: argparse.Namespace) -> None:
    from tools.weights.clean import clean

    clean(args.input, args.out, overwrite=args.overwrite)
