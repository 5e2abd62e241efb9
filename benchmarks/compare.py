"""Compare two groups of runs, pair by pair: the same seeds or folds from another start, or pre-trained in another way.

    python -m benchmarks.compare --first scratch=experiments/fine-tuning/point-mae/modelnet10-tiny/scratch \\
        --second pretrained=experiments/fine-tuning/point-mae/modelnet10-tiny/pretrained --out benchmarks/results/finetune/point-mae

Each group is a folder of runs, `seed0`, `seed1` ... or `fold0`, `fold1` ...; both must have the same ones. `--out` receives metrics,
configuration and log of each run, `summary.json` and `summary.md`.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.seeds import collect

# Kind of row, key in it, and what it is called.
KEYS = (
    ("val", "accuracy", "accuracy"),
    ("vote", "mean", "accuracy with voting"),
    ("parts", "instance_miou", "instance mIoU"),
    ("parts", "class_miou", "class mIoU"),
    ("parts", "accuracy", "point accuracy"),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--second", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(arguments)
    groups = dict(read_group(text, args.out) for text in (args.first, args.second))
    summary = compare(groups)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (args.out / "summary.md").write_text(table(summary), encoding="utf-8")
    print(table(summary), end="")


def read_group(text: str, out: Path) -> tuple[str, dict[str, list[dict]]]:
    """Copy what documents the runs of a group and return its name and the rows of each run."""
    name, equals, folder = text.partition("=")
    runs = sorted(path.parent for path in Path(folder).glob("*/metrics.jsonl"))
    if not equals or not runs:
        raise SystemExit(f"{text}: expected NAME=FOLDER with runs in it, such as FOLDER/seed0/metrics.jsonl")
    return name, {run.name: collect(run, out / name / run.name) for run in runs}


def compare(groups: dict[str, dict[str, list[dict]]]) -> dict:
    """Return values in percent by quantity and group, and the differences of the second group to the first, pair by pair."""
    (first, a), (second, b) = groups.items()
    if a.keys() != b.keys():
        raise SystemExit(f"{first} has the runs {', '.join(a)}, {second} has {', '.join(b)}; they must be the same")
    found = {name: [_results(rows) for rows in runs.values()] for name, runs in groups.items()}
    quantities = {}
    common = [name for name in found[first][0] if all(name in results for runs in found.values() for results in runs)]
    for quantity in common:
        values = {name: [results[quantity] for results in runs] for name, runs in found.items()}
        gains = [y - x for x, y in zip(values[first], values[second], strict=True)]
        quantities[quantity] = {name: _spread(v) for name, v in {**values, "difference": gains}.items()}
    minutes = {name: _spread([_minutes(rows) for rows in runs.values()]) for name, runs in groups.items()}
    memory = {name: _spread([_memory(rows) for rows in runs.values()]) for name, runs in groups.items()}
    return {
        "runs": list(a),
        "groups": [first, second],
        "quantities": quantities,
        "training minutes": minutes,
        "peak memory, MB": memory,
    }


def _results(rows: list[dict]) -> dict[str, float]:
    results = {}
    for kind, key, name in KEYS:
        values = [100 * row[key] for row in rows if row["kind"] == kind]
        if values:
            results[f"{name}, last epoch"] = values[-1]
            if len(values) > 1:
                results[f"{name}, best epoch (selected on the test set)"] = max(values)
    return results | _probed(rows)


def _probed(rows: list[dict]) -> dict[str, float]:
    """Return what the linear SVM said of the last epoch, and of random weights where these were judged."""
    judged = [row for row in rows if row["kind"] == "svm"]
    untrained = [row for row in judged if row["epoch"] is None]
    results = {}
    for found, when in (
        (untrained, "random weights"),
        ([row for row in judged if row["epoch"] is not None], "last epoch"),
    ):
        for key, text in (("accuracy", "published C"), ("chosen_accuracy", "cross-validated C")):
            if found and found[-1].get(key) is not None:
                results[f"linear SVM, {when}, {text}"] = 100 * found[-1][key]
    return results


def _minutes(rows: list[dict]) -> float:
    return sum(row["seconds"] for row in rows if row["kind"] == "epoch") / 60


def _memory(rows: list[dict]) -> float:
    return max((row.get("memory_mb", 0.0) for row in rows if row["kind"] == "epoch"), default=0.0)


def _spread(values: list[float]) -> dict:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 3), "std": round(std, 3), "values": [round(v, 3) for v in values]}


def table(summary: dict) -> str:
    names = [*summary["groups"], "difference"]
    lines = [
        f"{len(summary['runs'])} runs each: {', '.join(summary['runs'])}. Mean and sample standard deviation, in %.",
        "",
    ]
    lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for quantity, row in summary["quantities"].items():
        cells = [f"{row[name]['mean']:.2f} ± {row[name]['std']:.2f}" for name in names]
        lines.append(f"| {quantity} | {' | '.join(cells)} |")
    times = ", ".join(f"{name} {row['mean']:.1f}" for name, row in summary["training minutes"].items())
    return "\n".join([*lines, "", f"Training, wall minutes a run on one thread of a busy machine: {times}."]) + "\n"


if __name__ == "__main__":
    main()
