"""Compare groups of runs, pair by pair: the same seeds or folds from another start, or trained in another way.

    python -m benchmarks.studies.compare scratch=experiments/fine-tuning/point-mae/modelnet10-tiny/scratch \\
        pretrained=experiments/fine-tuning/point-mae/modelnet10-tiny/pretrained \\
        --out benchmarks/results/ten-epochs.json --section "Point-MAE, fine-tuning"

A group is a folder of runs, `seed0`, `seed1` ... (`--seeds` of main.py) or `fold0`, `fold1` ... (`--fold all`). Differences are taken
to the first group, and all groups must have the same runs. `--out` receives one section of a study: of each run its command, its
versions and, epoch by epoch (of long runs at most 200 epochs), losses and accuracies; of all runs means and sample standard
deviations, in percent.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

import yaml

from utils.files import write_atomic

# Kind of row, key in it, and what it is called.
KEYS = (
    ("val", "accuracy", "accuracy"),
    ("vote", "mean", "accuracy with voting"),
    ("parts", "instance_miou", "instance mIoU"),
    ("parts", "class_miou", "class mIoU"),
    ("parts", "accuracy", "point accuracy"),
    ("detection", "ap25", "AP25"),
    ("detection", "ap50", "AP50"),
    ("detection", "ar25", "AR25"),
)
NOT_KEPT = ("kind", "best", "samples_per_second", "data", "rounds")
DIGITS = 6  # significant ones of a number that is kept
LONGEST = 200  # values of a curve that are kept

ABOUT = ("command", "versions")
Run = dict  # "command", "versions", then kind of row -> column -> values


def main(arguments: list[str] | None = None) -> None:
    """Compare the groups of the command line, print the table and add the section to the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the study")
    parser.add_argument("--section", required=True, help="name of this comparison in the study")
    args = parser.parse_args(arguments)
    comparison = compare(dict(read_group(text) for text in args.groups))
    study = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    write_study(args.out, study | {args.section: comparison})
    print(table(comparison), end="")


def read_group(text: str) -> tuple[str, dict[str, Run]]:
    """Return the name of a group and its runs by the names of their folders."""
    name, equals, folder = text.partition("=")
    runs = sorted(path.parent for path in Path(folder).glob("*/metrics.jsonl"))
    if not equals or not runs:
        raise SystemExit(f"{text}: expected NAME=FOLDER with runs in it, such as FOLDER/seed0/metrics.jsonl")
    return name, {run.name: read_run(run) for run in runs}


def read_run(folder: Path) -> Run:
    """Return the command of a run, its versions and the columns of its metrics, without the rows of single steps."""
    path = folder / "provenance.yaml"
    about = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    run: Run = {"command": about.pop("Command", None), "versions": {key: str(value) for key, value in about.items()}}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["kind"] == "step":
            continue
        columns = run.setdefault(row["kind"], {})
        before = len(columns.get("epoch", ()))
        for key in (key for key in row if key not in NOT_KEPT):
            columns.setdefault(key, [None] * before).append(_short(row[key]))
        for values in columns.values():
            values += [None] * (before + 1 - len(values))
    return run


def _short(value: object) -> object:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def compare(groups: dict[str, dict[str, Run]]) -> dict:
    """Return the groups, and by quantity what each of them reached and the difference to the first, pair by pair."""
    first, *others = groups
    for other in others:
        if groups[first].keys() != groups[other].keys():
            have = f"{first} has the runs {', '.join(groups[first])}, {other} has {', '.join(groups[other])}"
            raise SystemExit(f"{have}; they must be the same")
    reached = {name: [results(run) for run in runs.values()] for name, runs in groups.items()}
    quantities: dict[str, dict] = {}
    for name in groups:
        for quantity in (key for key in reached[name][0] if all(key in found for found in reached[name])):
            values = [found[quantity] for found in reached[name]]
            row = quantities.setdefault(quantity, {})
            row[name] = spread(values)
            if name != first and first in row:
                gains = [y - x[quantity] for x, y in zip(reached[first], values, strict=True)]
                row[f"{name} - {first}"] = spread(gains)
    kept = {name: {run: _thin(columns) for run, columns in runs.items()} for name, runs in groups.items()}
    return {"quantities": quantities, "groups": kept}


def _thin(run: Run) -> Run:
    """Return the run with every n-th value of columns longer than `LONGEST`, counted from their last."""

    def thin(values: list) -> list:
        return values[:: -max(1, -(-len(values) // LONGEST))][::-1]

    kinds = run.keys() - set(ABOUT)
    return run | {kind: {key: thin(values) for key, values in run[kind].items()} for kind in kinds}


def results(run: Run) -> dict[str, float]:
    """Return what a run reached, percent by name; minutes and megabytes too."""
    found = {}
    for kind, key, name in KEYS:
        values = [100 * value for value in run.get(kind, {}).get(key, ())]
        if values:
            found[f"{name}, last epoch"] = values[-1]
            if len(values) > 1:
                found[f"{name}, first epoch"] = values[0]
                found[f"{name}, best epoch (selected on the test set)"] = max(values)
    found |= _probed(run.get("svm", {}))
    epochs = run["epoch"]
    found["loss x 1000, last epoch"] = 1000 * epochs["loss"][-1]
    found["training, wall minutes"] = sum(epochs["seconds"]) / 60
    if "memory_mb" in epochs:
        found["peak memory, MB"] = max(epochs["memory_mb"])
    return found


def _probed(svm: dict[str, list]) -> dict[str, float]:
    """Return what the linear SVM reached after the last epoch, after the best one, and with random weights."""
    found = {}
    for key, C in (("accuracy", "published C"), ("chosen_accuracy", "cross-validated C")):
        values = list(zip(svm.get("epoch", ()), svm.get(key, ()), strict=False))
        untrained = [value for epoch, value in values if epoch is None and value is not None]
        trained = [value for epoch, value in values if epoch is not None]
        if untrained:
            found[f"linear SVM, random weights, {C}"] = 100 * untrained[-1]
        if trained and trained[-1] is not None:
            found[f"linear SVM, last epoch, {C}"] = 100 * trained[-1]
            if key == "accuracy" and len(trained) > 1:
                found[f"linear SVM, best epoch (selected on the test set), {C}"] = 100 * max(trained)
    return found


def spread(values: list[float]) -> dict:
    """Return mean, sample standard deviation and the values themselves, to three decimals."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 3), "std": round(std, 3), "values": [round(v, 3) for v in values]}


def table(comparison: dict) -> str:
    """Return the quantities of a comparison as a Markdown table."""
    names = list(dict.fromkeys(name for row in comparison["quantities"].values() for name in row))
    runs = list(next(iter(comparison["groups"].values())))
    lines = [f"{len(runs)} runs each: {', '.join(runs)}. Mean and sample standard deviation.", ""]
    lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for quantity, row in comparison["quantities"].items():
        cells = (f"{row[name]['mean']:.2f} ± {row[name]['std']:.2f}" if name in row else "" for name in names)
        lines.append(f"| {quantity} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_study(path: Path, study: dict) -> None:
    """Write a study as JSON, each list of numbers on one line."""
    text = json.dumps(study, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write((text + "\n").encode()))


if __name__ == "__main__":
    main()
