"""Run the recipes of a folder, here or through a scheduler, and print their table:

    python -m tools.sweep cfgs/ablation/point-m2ae --seeds 0,1,2
    python -m tools.sweep cfgs/ablation/point-m2ae/fine-tuning --seeds 0,1,2 -- --scratch_model

Each recipe is trained with each seed, in order; the table has the scores and their paired differences to `base.yaml`. The same command goes
on where it was stopped and skips what is complete. What follows `--` goes to the main program.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev

from tools.report.tables import FORMS
from tools.statistics import check_pairs, compare_pairs, interval
from tools.summary_table import HEADERS
from tools.sweep_recipes import Row, read_rows
from utils import ROOT
from utils.errors import UserError, say
from utils.files import write_atomic
from utils.programs import run_program

SCORES = ("last", "chosen", "selected", "best")
FILES = {"markdown": "md", "csv": "csv", "latex": "tex"}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what follows `--` is in `flags`."""
    own, flags = (arguments, []) if "--" not in arguments else _split(arguments)
    args = build_parser().parse_args(own)
    args.seeds, args.flags = read_seeds(args.seeds), flags
    return args


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags in front of `--`."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of recipes")
    parser.add_argument("--seeds", default="0", metavar="SEEDS", help="of every recipe: --seeds 0,1,2 (default: 0)")
    parser.add_argument(
        "--name", default="sweep", help="of the runs, the first part of their --exp_name (default: sweep)"
    )
    parser.add_argument("--score", choices=SCORES, default="last", help="that rows are compared by (default: last)")
    parser.add_argument("--dry_run", action="store_true", help="check the recipes and list what is to be done")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of what is complete")
    parser.add_argument(
        "--slurm", action="store_true", help="submit each run to Slurm, through submitit, instead of running it here"
    )
    parser.add_argument(
        "--slurm_set", action="append", default=[], metavar="KEY=VALUE",
        help="with --slurm: what submitit asks for, such as slurm_partition=gpu, gpus_per_node=1, timeout_min=600; may be repeated",
    )  # fmt: skip
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    place = list(arguments).index("--")
    return list(arguments[:place]), list(arguments[place + 1 :])


def read_seeds(text: str) -> list[int]:
    """Read what `--seeds` says, "0,1,2".

    Raises:
        UserError: anything else, or a seed that stands twice.
    """
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--seeds {text}: expected whole numbers, each once, for example --seeds 0,1,2")
    return [int(part) for part in parts]


def sweep(args: argparse.Namespace) -> None:
    """Run what is not complete yet, and print and write the table.

    Raises:
        UserError: a recipe that cannot run, or runs that failed.
    """
    _check_flags(args.flags)
    settings = dict(_setting(text) for text in args.slurm_set)
    rows = read_rows(args.folder, name=args.name, flags=args.flags)
    pending = [(row, seed) for row in rows for seed in args.seeds if row.run(seed) is None]
    for row in rows:
        row.check_same(args.seeds)
    say(
        f"{len(rows)} recipes, {len(args.seeds)} seeds each: {len(pending)} of {len(rows) * len(args.seeds)} runs are to be done"
    )
    if args.dry_run:
        for row, seed in pending:
            print(" ".join(_command(row, seed)))
        return
    if args.slurm:
        _submit(pending, args.folder, settings)
        return
    failed = [] if args.table else [f"{row.name} seed {seed}" for row, seed in pending if not _run(row, seed)]
    print(write_table(rows, args.seeds, args.score))
    if failed:
        raise UserError(
            f"{len(failed)} runs failed: {', '.join(failed)}; their logs say why. The same command runs them again"
        )


def _check_flags(flags: Sequence[str]) -> None:
    """Raise for flags of the main program that tools.sweep sets itself, or that make more of a run than one.

    Raises:
        UserError: naming the flag.
    """
    for flag in ("--seed", "--seeds", "--exp_name", "--config", "--resume", "--overwrite", "--slurm"):
        if flag in flags:
            raise UserError(f"{flag}: behind -- is for the main program, and tools.sweep sets it; leave it out")
    if "all" in flags and "--fold" in flags:
        raise UserError("--fold all: makes ten runs of one; give one fold, such as --fold 0, and several --seeds")


def _command(row: Row, seed: int) -> list[str]:
    """Return the command of one run, which goes on with what there is of it."""
    arguments = list(row.arguments)
    place = arguments.index("--exp_name") + 1
    arguments[place] = f"{arguments[place]}/seed{seed}"
    resume = ["--resume"] if (row.folder / f"seed{seed}" / "config.yaml").is_file() else []
    return [sys.executable, str(ROOT / "main.py"), *arguments, "--seed", str(seed), *resume]


def _run(row: Row, seed: int) -> bool:
    """Run one recipe with one seed; returns whether it ended well.

    Raises:
        Stopped: as `run_program`.
    """
    say(f"{row.name}, seed {seed}")
    return run_program(_command(row, seed)) == 0


def _submit(pending: Sequence[tuple[Row, int]], folder: Path, settings: Mapping[str, object]) -> None:
    """Submit runs to Slurm.

    Raises:
        UserError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--slurm: needs submitit; install it: pip install 'm2ae[slurm]', or pip install submitit"
        ) from error
    executor = submitit.AutoExecutor(folder=Path("experiments") / "slurm" / folder.name)
    executor.update_parameters(name=folder.name, **settings)
    with executor.batch():
        jobs = [executor.submit(submitit.helpers.CommandFunction(_command(row, seed))) for row, seed in pending]
    for (row, seed), job in zip(pending, jobs, strict=True):
        say(f"{row.name}, seed {seed}: job {job.job_id}")
    say("when they have ended, the same command with --table prints the table")


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"--slurm_set {text}: expected KEY=VALUE, such as timeout_min=600")
    return name, int(value) if value.isdigit() else value


def write_table(rows: Sequence[Row], seeds: Sequence[int], score: str) -> str:
    """Write the table of what is complete above the runs, as Markdown, CSV and LaTeX; returns it for the terminal.

    Raises:
        UserError: nothing is complete, a run has no such score, or rows are of different seeds.
    """
    scores = {row: found for row in rows if (found := _scores(row, seeds, score))}
    if not scores:
        raise UserError(f"{rows[0].folder.parent}: no run is complete yet, there is nothing to compare")
    check_pairs({row.name: found for row, found in scores.items()})
    base = rows[0]
    headers = [
        "recipe",
        "changed",
        HEADERS[score] + ", %",
        "95 %",
        f"minus {base.name}",
        "95 % of the difference",
        "p (Wilcoxon)",
    ]
    cells = [_cells(row, found, None if row is base else scores.get(base)) for row, found in scores.items()]
    folder, name = base.folder.parent.parent, base.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    for form, ending in FILES.items():
        text = FORMS[form](headers, cells)
        write_atomic(folder / f"{name}.{ending}", lambda file, text=text: file.write(text.encode("utf-8")))
    missing = [row.name for row in rows if row not in scores]
    note = f"not complete, and left out: {', '.join(missing)}\n" if missing else ""
    note += f"no differences before {base.name} is complete\n" if base not in scores else ""
    about = f"{len(next(iter(scores.values())))} seeds; mean ± sample standard deviation; intervals by Student's t\n"
    return f"{FORMS['terminal'](headers, cells)}{about}{note}{folder / name}.{{{','.join(FILES.values())}}}"


def _scores(row: Row, seeds: Sequence[int], score: str) -> dict[int, float]:
    """Return seed -> score of the complete runs of a row; nothing unless all seeds are."""
    runs = {seed: row.run(seed) for seed in seeds}
    if any(run is None for run in runs.values()):
        return {}
    found = {seed: getattr(run, score) for seed, run in runs.items()}
    if any(value is None for value in found.values()):
        raise UserError(
            f"{row.folder}: has no score {HEADERS[score]!r}; choose another --score, one of {', '.join(SCORES)}"
        )
    return found


def _cells(row: Row, found: dict[int, float], base: dict[int, float] | None) -> list[str]:
    values = list(found.values())
    own = interval(values)
    spread = f"{own.mean:.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{own.mean:.2f}"
    ends = f"{own.low:.2f} to {own.high:.2f}" if len(values) > 1 else ""
    if base is None:
        return [row.name, row.changes, spread, ends, "", "", ""]
    paired = compare_pairs(found, base)
    p = "" if paired.wilcoxon is None or len(values) < 2 else f"{paired.wilcoxon:.3f}"
    between = f"{paired.interval.low:+.2f} to {paired.interval.high:+.2f}" if len(values) > 1 else ""
    return [row.name, row.changes, spread, ends, f"{paired.interval.mean:+.2f}", between, p]
