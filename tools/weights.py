"""Keep the weights of a checkpoint, and nothing else: `python -m tools.weights clean IN OUT`.

For files that hold more than plain data: nothing in them is run.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.checkpoints import check_weights, find_weights
from utils.errors import UserError, run_command
from utils.files import AGAIN, read_checkpoint, save_checkpoint
from utils.log import console
from utils.reading import reading
from utils.untrusted import load_with_stand_ins

_LOG = logging.getLogger("m2ae.weights")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.weights", description="Keep the weights of a checkpoint alone."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("clean", help="write the tensors of a checkpoint, without what else it holds")
    command.add_argument("input", type=Path, metavar="IN", help="any checkpoint; nothing in it is run")
    command.add_argument("out", type=Path, metavar="OUT", help="a new file")
    command.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    command.add_argument("--debug", action="store_true", help="show where an error arose")
    args = parser.parse_args(argv)
    with console():
        return run_command(lambda: clean(args.input, args.out, overwrite=args.overwrite), debug=args.debug)


def clean(source: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write the weights of `source` to `out`, as `{"base_model": ...}`.

    Raises:
        UserError: the file holds no weights that can be used, or the output exists.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; replace it with --overwrite, or choose another name")
    try:
        checkpoint = read_checkpoint(source)
    except UserError:
        with reading(source, "a checkpoint"):
            checkpoint = load_with_stand_ins(source, keep_going=True)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{source}: holds a {type(checkpoint).__name__}, expected a dict with weights")
    weights = find_weights(checkpoint)
    check_weights(str(source), weights, list(weights))
    plain = {key: value.detach().clone().contiguous() for key, value in weights.items()}
    save_checkpoint(out, {"base_model": plain}, AGAIN)
    _LOG.info("%s: %d tensors, %d values", out, len(plain), sum(value.numel() for value in plain.values()))


if __name__ == "__main__":
    sys.exit(main())
