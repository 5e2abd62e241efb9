"""One table of all runs below a folder.

    python -m tools.summary experiments --sort best --filter method=point-mae --format markdown

Runs that differ in their seed or fold alone are one row with mean and sample standard deviation; `--each` gives each its own.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.compare import summary_page
from tools.report.tables import FORMS
from tools.summary_runs import find_runs
from tools.summary_table import HEADERS, filter_rows, group, sort_rows, table
from utils.errors import UserError, run_command, say
from utils.files import write_atomic


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the command line, or write it; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: _run(args))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.summary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("experiments"))
    parser.add_argument("--format", choices=FORMS, default="terminal", help="of the table (default: terminal)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the table, or with --format html a page with curves, into a file",
    )
    parser.add_argument("--sort", metavar="COLUMN", help=f"highest first, or by name: {', '.join(HEADERS)}")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="COLUMN=TEXT",
        help="only rows whose column, or key of the configuration, contains TEXT; may be repeated",
    )  # fmt: skip
    parser.add_argument("--each", action="store_true", help="one row for each seed and fold")
    return parser


def _run(args: argparse.Namespace) -> None:
    runs, others = find_runs(args.folder)
    for line in others:
        say(line)
    if not runs:
        raise UserError(f"{args.folder}: has no runs below it; train one, or give another folder")
    rows = sort_rows(filter_rows(group(runs, each=args.each), args.filter), args.sort)
    if not rows:
        raise UserError(
            f"--filter {' '.join(args.filter)}: leaves none of {len(runs)} runs; see the columns without it"
        )
    headers, cells = table(rows)
    if args.format == "html":
        text = summary_page(args.folder, rows, headers, cells, place=(args.out or Path("page.html")).parent)
    else:
        text = FORMS[args.format](headers, cells)
    if args.out is None:
        sys.stdout.write(text)
    else:
        write_atomic(args.out, lambda file: file.write(text.encode("utf-8")))
        say(f"{args.out}: {len(rows)} rows of {len(runs)} runs")


if __name__ == "__main__":
    sys.exit(main())
