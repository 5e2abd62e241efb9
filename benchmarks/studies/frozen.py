"""Compare the features of pre-trained encoders with those of the weights they began from, run by run.

    python -m benchmarks.studies.frozen point-m2ae=experiments/pre-training/point-m2ae/mini/mini \\
        point-mae=experiments/pre-training/point-mae/mini/mini --out benchmarks/results/mini-weights.json --section frozen

A group is a folder of runs, `seed0`, `seed1` ... Every encoder is evaluated on the set of its recipe, turned to the axis along which the
training clouds stand, and on the built-in set: linear SVM at C 0.01 and at the C that cross-validation on the training features
chooses, and nearest neighbours. Nothing is chosen on the test sets.
"""

import argparse
import json
import logging
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.studies.compare import write_study
from datasets import DATASETS
from models import MODELS, build_model
from tools.context import RunContext
from tools.probes import PROBES
from tools.svm import PRETRAINING_C, LinearProbe
from utils.config.load import saved_config
from utils.config.schema import SVMDatasets
from utils.files import read_checkpoint, write_atomic
from utils.seed import seed_everything

BUILT_IN = {"NAME": "Synthetic", "N_POINTS": 1024, "clouds": 1000}


def main(arguments: list[str] | None = None) -> None:
    """Evaluate all runs of all groups, print the table and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", required=True, type=Path, help="JSON file of the study")
    parser.add_argument("--section", required=True, help="name of this comparison in the study")
    parser.add_argument(
        "--published_C",
        action="store_true",
        help="take the C published for ModelNet40 in place of 0.01, where there is one",
    )
    args = parser.parse_args(arguments)
    found = {}
    for text in args.groups:
        name, _, folder = text.partition("=")
        runs = sorted(path.parent for path in Path(folder).glob("*/ckpt-last.pth"))
        if not runs:
            parser.error(f"{text}: expected NAME=FOLDER with runs in it, such as FOLDER/seed0/ckpt-last.pth")
        found[name] = summary([evaluate(run, published_C=args.published_C) for run in runs])
    study = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    write_study(args.out, study | {args.section: found})
    print(table(found), end="")


def turned(entry, axis: str):
    """Return the configuration of a data set whose clouds stand along `axis`."""
    if axis == entry.UP_AXIS:
        return entry
    points = entry.npoints or entry.num_points
    keys = {"sets": [asdict(entry)], "subset": entry.subset, "UP_AXIS": axis, "npoints": points, "sampling": "first"}
    return DATASETS.config({"NAME": "Mixture", **keys})


def fixed_C(model: nn.Module, published_C: bool) -> float:
    """Return the C of the linear SVM that nothing chooses."""
    return model.svm_C.get("modelnet40", PRETRAINING_C) if published_C else PRETRAINING_C


def evaluate(folder: Path, *, published_C: bool = False) -> dict[str, dict[str, float]]:
    """Return accuracies in percent by quantity, each `untrained` and `pre-trained`, of one run.

    They are kept in its folder, as `frozen.json`, or `frozen-published.json` with the published C.
    """
    known = folder / ("frozen-published.json" if published_C else "frozen.json")
    weights = folder / "ckpt-last.pth"
    if known.exists() and known.stat().st_mtime > weights.stat().st_mtime:
        return json.loads(known.read_text(encoding="utf-8"))
    checkpoint = read_checkpoint(weights)
    config = saved_config(checkpoint["config"], str(folder), models=MODELS, datasets=DATASETS)
    config = replace(config, svm=replace(config.svm, cross_validate=True))
    run = RunContext(config, argparse.Namespace(), folder, torch.device("cpu"), logging.getLogger("m2ae"))
    axis, svm_sets = config.dataset.train.UP_AXIS, config.dataset.svm
    own = SVMDatasets(turned(svm_sets.train, axis), turned(svm_sets.test, axis))
    built_in = SVMDatasets(
        *(DATASETS.config(BUILT_IN | {"subset": subset, "UP_AXIS": axis}) for subset in ("train", "test"))
    )
    seed_everything(config.seed)
    model = build_model(config.model)
    results: dict[str, dict[str, float]] = {}
    for state in ("untrained", "pre-trained"):
        for sets in (own, built_in):
            probe = LinearProbe(run, fixed_C(model, published_C), sets)
            features = probe.features(model)
            svm = probe.evaluate_features(features, choose=True)
            values = {
                f"linear SVM, C {svm.C:g}": svm.accuracy,
                "linear SVM, C cross-validated": svm.chosen_accuracy,
                "nearest neighbours": PROBES["knn"](*features)[0],
            }
            for name, value in values.items():
                results.setdefault(f"{probe.name}, {name}", {})[state] = round(100 * value, 3)
        model.load_state_dict(checkpoint["base_model"])
    text = json.dumps(results, indent=1) + "\n"
    write_atomic(known, lambda file: file.write(text.encode()))
    return results


def summary(runs: list[dict]) -> dict:
    """Return mean, sample standard deviation and single values of each quantity, and of the difference run by run."""
    found: dict[str, dict] = {}
    for quantity in runs[0]:
        columns = {state: [run[quantity][state] for run in runs] for state in ("untrained", "pre-trained")}
        columns["difference"] = [after - before for before, after in zip(*columns.values(), strict=True)]
        found[quantity] = {state: spread(values) for state, values in columns.items()}
    return found


def spread(values: list[float]) -> dict:
    """Return mean, sample standard deviation and the values, rounded."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.mean(values), 3),
        "std": round(spread, 3),
        "values": [round(value, 3) for value in values],
    }


def table(found: dict) -> str:
    """Return the comparison as Markdown."""
    lines = ["| | | untrained | pre-trained | difference |", "|---|---|---|---|---|"]
    for name, quantities in found.items():
        for quantity, columns in quantities.items():
            cells = " | ".join(f"{column['mean']:.1f} ± {column['std']:.1f}" for column in columns.values())
            lines.append(f"| {name} | {quantity} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
