"""The one entry point: arguments -> resolved configuration -> seed, process group, log -> a runner of tools/."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence

from utils.errors import UserError
from utils.parser import parse_args

# Published flags whose task is not part of this version.
LATER = ("test", "finetune_model", "scratch_model", "transfer", "vote", "seeds")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 128 + signal when stopped."""
    return run_command(argv, _parse, _dispatch)


def run_command(
    argv: Sequence[str] | None, parse: Callable[..., argparse.Namespace], dispatch: Callable[..., int]
) -> int:
    """Parse a command line, open its run and hand it to `dispatch(run)`, whose exit status is returned.

    Bad input and full or read-only disks are one message on stderr and the status 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _open(parse(argv), dispatch)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {error}" + ("" if isinstance(error, UserError) else " (--debug shows where)"), file=sys.stderr)
        return 2


def _open(args: argparse.Namespace, dispatch: Callable[..., int]) -> int:
    # Imported here, so that --help and argument errors answer at once.
    from tools.context import choose_device
    from tools.launch import open_run
    from utils import dist
    from utils.memory import keep_freed_memory
    from utils.seed import seed_everything

    device = choose_device(args.device)
    keep_freed_memory()
    dist.init(args.launcher, device)
    try:
        run = open_run(args, device)
        seed_everything(run.seed, args.deterministic)
        with run.log:
            return dispatch(run)
    finally:
        dist.cleanup()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line and refuse what this version cannot do yet, rather than ignore it."""
    args = parse_args(argv)
    for name in LATER:
        if getattr(args, name):
            raise UserError(f"--{name}: fine-tuning is not part of this version; pre-training and --test_svm are")
    return args


def _dispatch(run) -> int:
    if run.args.test_svm:
        from tools.runner_svm import run_svm

        run_svm(run)
    else:
        from tools.engine import Interrupted
        from tools.runner_pretrain import run_pretrain

        try:
            run_pretrain(run)
        except Interrupted as stopped:
            run.log.info(f"{stopped}; the state is saved, --resume goes on with it")
            return 128 + stopped.signal_number
    return 0


if __name__ == "__main__":
    sys.exit(main())
