"""Keep what a sweep found as one file, and read it next to published differences.

    python -m tools.sweep cfgs/ablation/point-m2ae/modelnet10-mini --seeds 0,1,2 --score last \\
        -- --val_freq 100 --set svm.cross_validate=false
    python -m benchmarks.studies.ablation cfgs/ablation/point-m2ae/modelnet10-mini --seeds 0,1,2 --score last \\
        --out benchmarks/results/ablation-mini.json

Each row has its scores by seed, and their paired difference to the base with its 95 % interval by Student's t. Where Zhang et al. 2022 have
the same row (linear SVM on ModelNet40, Tables 7, 8, 11 and 12), their difference is next to ours, and whether ours has the same sign, is
open (the interval holds zero), or has the other one. `--score selected` of runs with `--held_out` tells held-out selection from `best`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.compare import write_study
from tools.report.tables import FORMS
from tools.statistics import compare_pairs, interval
from tools.summary_table import HEADERS
from tools.sweep_recipes import Row, read_rows
from utils.errors import UserError, run_command

SCORES = ("last", "chosen", "selected", "best", "untrained", "minutes")
PUBLISHED_BASE = 92.9
# Row of cfgs/ablation/point-m2ae -> linear SVM on ModelNet40, published.
PUBLISHED = {
    "flat": 90.7, "flat-encoder": 91.5, "flat-decoder": 92.2, "no-skip-connections": 92.1, "no-multi-scale-mask": 88.4,
    "mask-ratio-0.5": 92.1, "mask-ratio-0.6": 92.3, "mask-ratio-0.7": 92.7, "mask-ratio-0.9": 92.5,
    "stages-2-1": 91.8, "stages-4-3": 90.4, "stages-3-3": 90.7, "blocks-4-1": 92.7, "blocks-3-1": 92.6, "blocks-5-2": 91.7,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the study of the command line, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recipes of the sweep")
    parser.add_argument("--name", default="sweep", help="of the sweep (default: sweep)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--score", choices=SCORES[:4], default="chosen", help="that is compared (default: chosen)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the study")
    args = parser.parse_args(arguments)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    seeds = [int(seed) for seed in args.seeds.split(",")]
    rows = {row.name: collect(row, seeds) for row in read_rows(args.folder, name=args.name, flags=["--scratch_model"])}
    rows = {name: row for name, row in rows.items() if row is not None}
    if "base" not in rows:
        raise UserError(
            f"{args.folder}: the base has not all seeds {args.seeds}; run python -m tools.sweep {args.folder} first"
        )
    study = {"score": HEADERS[args.score], "seeds": seeds, "rows": rows}
    write_study(args.out, study)
    sys.stdout.write(table(rows, args.score))


def collect(row: Row, seeds: Sequence[int]) -> dict | None:
    """Return the scores of a row by name, one a seed; None where a seed is missing."""
    runs = [row.run(seed) for seed in seeds]
    if any(run is None for run in runs):
        return None
    values = {score: [getattr(run, score) for run in runs] for score in SCORES}
    return {"changes": row.changes, **{score: found for score, found in values.items() if None not in found}}


def table(rows: dict[str, dict], score: str) -> str:
    """Return the rows in Markdown, best first, each next to what was published."""
    base = dict(enumerate(rows["base"][score]))
    cells = []
    for name, row in sorted(rows.items(), key=lambda item: -sum(item[1][score])):
        own = interval(row[score])
        line = [name, f"{own.mean:.2f}", f"{own.low:.2f} to {own.high:.2f}"]
        if name == "base":
            cells.append([*line, "", "", "", ""])
            continue
        found = compare_pairs(dict(enumerate(row[score])), base).interval
        published = PUBLISHED.get(name)
        theirs = "" if published is None else f"{published - PUBLISHED_BASE:+.1f}"
        reading = "" if published is None else agreement(found.low, found.high, published - PUBLISHED_BASE)
        cells.append([*line, f"{found.mean:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", theirs, reading])
    headers = ["row", HEADERS[score], "95 %", "minus base", "95 %", "published", "reading"]
    return FORMS["markdown"](headers, cells)


def agreement(low: float, high: float, published: float) -> str:
    """Say how an interval of differences stands to a published difference."""
    if low <= 0 <= high:
        return "open"
    return "same sign" if (low > 0) == (published > 0) else "other sign"


if __name__ == "__main__":
    sys.exit(main())
