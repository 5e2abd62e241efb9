"""The one entry point: arguments -> resolved configuration -> seed, process group, log -> a runner of tools/."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from tools.run_folder import check_early
from utils import errors
from utils.config.cli import parse_args
from utils.environment import settle_environment
from utils.errors import UserError

Results = dict[str, float]  # what a run was worth, by what it is


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 128 + signal when stopped. `prog` is what --help calls it."""
    return run_command(argv, partial(parse_args, prog=prog), dispatch)


def run_command(
    argv: Sequence[str] | None, parse: Callable[..., argparse.Namespace], dispatch: Callable[..., Results | None]
) -> int:
    """Parse a command line, open its runs and hand each to `dispatch(run)`; returns the exit status.

    Bad input and full or read-only disks are one message on stderr and the status 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    settle_environment()
    return errors.run_command(lambda: _open(parse(argv), dispatch), debug="--debug" in argv)


def _open(args: argparse.Namespace, dispatch: Callable[..., Results | None]) -> int:
    check_early(args)
    # Imported here, so that --help and what is said above answer at once.
    from tools.launch import check_folds, open_run
    from tools.sweep import summarise, variants
    from tools.train import Interrupted
    from utils import dist
    from utils.device import choose_device, keep_freed_memory
    from utils.seed import seed_everything

    device = choose_device(args.device)
    keep_freed_memory()
    dist.init(args.launcher, device)
    results = {}
    try:
        check_folds(args)
        for name, variant in variants(args):
            run = open_run(variant, device)
            seed_everything(run.seed, variant.deterministic)
            with run.lock, run.log:
                try:
                    results[name] = _finish(run, dispatch(run) or {})
                except Interrupted as stopped:
                    run.log.info(f"{stopped}; the state is saved, --resume goes on with it")
                    return 128 + stopped.signal_number
        if dist.is_main() and len(results) > 1:
            print(summarise(args, results))
    finally:
        dist.cleanup()
    return 0


def _finish(run, results: Results) -> Results:
    """Keep what a command found as a file, and say where, and what comes next."""
    from tools.next_step import next_commands
    from tools.results import write_result
    from utils.dist import is_main

    if results and is_main():
        run.log.info(f"result: {write_result(run, results)}")
    if is_main():
        for command in next_commands(run):
            run.log.info(f"next: {command}")
    return results


def dispatch(run) -> Results:
    """Run what the flags ask for; of several, --test comes first, then --test_svm."""
    args = run.args
    if hasattr(run.config.model, "num_parts"):
        from segmentation.runner import run_parts

        return run_parts(run)
    if hasattr(run.config.model, "nqueries"):
        from detection.runner import run_detection

        return run_detection(run)
    if args.predict:
        raise UserError(
            f"--predict: {run.config.model.NAME} names no parts and detects no objects; use a recipe of cfgs/segmentation/ or "
            "cfgs/detection/"
        )
    if args.corruptions:
        from tools.corruptions import run_corruptions

        return run_corruptions(run)
    if args.test:
        from tools.test import run_test

        return run_test(run)
    if args.test_svm:
        from tools.svm import run_svm

        return run_svm(run)
    if args.finetune_model or args.scratch_model:
        from tools.finetune import run_finetune

        return run_finetune(run)
    from tools.pretrain import run_pretrain

    return run_pretrain(run)


if __name__ == "__main__":
    sys.exit(main())
