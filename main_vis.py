"""See what a pre-trained model rebuilds: `python main_vis.py --test --ckpts PTH --config YAML --exp_name NAME`."""

import argparse
import sys
from collections.abc import Sequence

from main import run_command
from utils.config.cli import Parser, build_parser, parse_args
from utils.errors import UserError

# Flags of main.py that ask for something else than a look.
OUT_OF_PLACE = (
    "finetune_model",
    "scratch_model",
    "test_svm",
    "resume",
    "overwrite",
    "start_ckpts",
    "transfer",
    "tune",
    "vote",
    "corruptions",
    "seeds",
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 for bad input."""
    return run_command(argv, parse_vis_args, _visualise)


def parse_vis_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of `main.py` and `--count`, `--input`.

    Raises:
        UserError: flags that contradict each other, lack another one or have no place here.
    """
    own, every = _parsers()
    given = every.parse_args(argv)  # answers --help and unknown flags
    for name in OUT_OF_PLACE:
        if getattr(given, name):
            raise UserError(f"--{name}: main_vis.py only shows a pre-trained model; leave it out, or use main.py")
    if given.launcher != "none":
        raise UserError(f"--launcher {given.launcher}: main_vis.py is one process; leave it out")
    if given.ckpts is None:
        raise UserError("main_vis.py needs --ckpts with a pre-trained model; add --ckpts PATH")
    if given.count is not None and given.count < 1:
        raise UserError(f"--count {given.count}: must be at least 1")
    with_predict = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # elsewhere they go with --predict
    with_predict.add_argument("--up")
    with_predict.add_argument("--skip_bad", action="store_true")
    shared = with_predict.parse_known_args(own.parse_known_args(argv)[1])[1]
    args = parse_args(shared)
    for name in ("count", "input", "up", "skip_bad"):
        setattr(args, name, getattr(given, name))
    args.test = True  # nothing is trained, whether or not the published --test is there
    return args


def build_vis_parser() -> Parser:
    """Return the parser of all flags."""
    return _parsers()[1]


def _parsers() -> tuple[Parser, Parser]:
    """Return the parser of the flags that only this program has, and that of all flags."""
    own = Parser(add_help=False, allow_abbrev=False)
    group = own.add_argument_group("what to show")
    group.add_argument("--count", type=int, metavar="N", help="clouds (default: 8 of the data set, all of --input)")
    group.add_argument(
        "--input",
        metavar="PATH",
        help="own clouds instead of the data set: a file (NPY, NPZ, text, PLY, PCD, or a mesh) or a folder of them",
    )
    return own, Parser(
        prog="main_vis.py",
        description="Mask clouds, let a pre-trained model rebuild them, and write pictures, a page and files of points. "
        "Of the flags of main.py, those of the configuration and the machine matter here.",
        parents=[own, build_parser()],
        conflict_handler="resolve",  # both have --help
        allow_abbrev=False,
    )


def _visualise(run) -> dict[str, float]:
    from tools.vis import run_vis

    return run_vis(run)


if __name__ == "__main__":
    sys.exit(main())
