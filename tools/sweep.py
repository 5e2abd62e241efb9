"""Several runs of one command, `--seeds` and `--fold all`: mean and spread over them.

As a program it runs all recipes of a folder (`sweep_command.py`).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path

from tools.published.paths import find_recipe
from tools.report.summary import write_summary
from tools.run_folder import experiment_folder
from utils.config.cli import FOLDS
from utils.errors import run_command
from utils.files import write_atomic


def variants(args: argparse.Namespace) -> list[tuple[str, argparse.Namespace]]:
    """Return (name, flags) of each run that a command asks for; one, without a name, where it asks for no more.

    Runs are in folders below that of the command. With `--resume` those that never began start, and those that are
    complete are only read.
    """
    choices = [
        (seed, fold) for seed in (args.seeds or [None]) for fold in (range(FOLDS) if args.fold == "all" else [None])
    ]
    if choices == [(None, None)]:
        return [("", args)]
    found = []
    for seed, fold in choices:
        variant = copy(args)
        parts = []
        if seed is not None:
            parts.append(f"seed{seed}")
            variant.seeds = None
            variant.set = [*args.set, f"seed={seed}"]
        if fold is not None:
            parts.append(f"fold{fold}")
            variant.fold = fold
        name = "_".join(parts)
        variant.exp_name = f"{args.exp_name}/{name}"
        variant.resume = args.resume and (_folder(variant) / "config.yaml").exists()
        found.append((name, variant))
    return found


def _folder(args: argparse.Namespace) -> Path:
    return experiment_folder(args, find_recipe(args.config, args.method).path)


def summarise(args: argparse.Namespace, results: Mapping[str, Mapping[str, float]]) -> str:
    """Write `summary.json`, `summary.md` and `summary.html` into the folder above the runs; returns the table.

    The spread is the sample standard deviation over all runs, seeds and folds alike.
    """
    names = list(dict.fromkeys(name for values in results.values() for name in values))
    rows = {}
    for name in names:
        values = [found[name] for found in results.values() if name in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows[name] = {"mean": statistics.mean(values), "std": spread, "values": values}
    folder = _folder(args)
    text = _table(list(results), rows)
    content = json.dumps({"runs": list(results), "results": rows}, indent=1) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "summary.json", lambda file: file.write(content.encode()))
    write_atomic(folder / "summary.md", lambda file: file.write(text.encode()))
    page = write_summary(folder, rows, list(results), title=f"{args.exp_name}: {len(results)} runs")
    return f"{text}{folder / 'summary.md'}\nreport: {page}"


def _table(runs: list[str], rows: Mapping[str, dict]) -> str:
    lines = [f"{len(runs)} runs: {', '.join(runs)}", "", "| | mean | std | each |", "|---|---|---|---|"]
    for name, row in rows.items():
        each = ", ".join(f"{value:.2f}" for value in row["values"])
        lines.append(f"| {name} | {row['mean']:.2f} | {row['std']:.2f} | {each} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipes of a folder; returns the exit status."""
    from tools.sweep_command import parse, sweep

    return run_command(lambda: sweep(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
