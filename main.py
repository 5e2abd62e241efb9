"""The one entry point: arguments -> resolved configuration -> seed, process group, log -> a runner of tools/."""

import sys
import traceback

from utils.errors import UserError
from utils.parser import parse_args


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 128 + signal when stopped."""
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        return _run(parse_args(argv))
    except (ValueError, OSError) as error:
        # Bad input and full or read-only disks: one message, no traceback.
        if debug:
            traceback.print_exc()
        print(f"error: {error}" + ("" if isinstance(error, UserError) else " (--debug shows where)"), file=sys.stderr)
        return 2


def _run(args) -> int:
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
            return _dispatch(run)
    finally:
        dist.cleanup()


def _dispatch(run) -> int:
    args = run.args
    if args.test_svm:
        from tools.runner_svm import run_svm

        run_svm(run)
    elif args.test or args.finetune_model or args.scratch_model:
        raise UserError("fine-tuning and its evaluation are not part of this version; pre-training and --test_svm are")
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
