"""End the quickstart: compare a pre-training run with the small weights of this package, on the same held-out clouds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.quickstart", description=__doc__)
    parser.add_argument("run", type=Path, metavar="DIR", help="folder of a pre-training run with a linear SVM")
    parser.add_argument("--ckpts", default="mini", metavar="PTH", help="weights to compare with (default: mini)")
    parser.add_argument("--debug", action="store_true", help="show where an error arose")
    args = parser.parse_args(argv)
    return run_command(lambda: print(compare(args.run, args.ckpts)), debug=args.debug)


def compare(folder: Path, ckpts: str = "mini") -> str:
    """Return one line: the linear SVM on random weights, on those of a run, and on the small ones where they are there.

    Raises:
        UserError: the folder holds no pre-training run with a linear SVM.
    """
    from tools.launch import load_recipe
    from utils.metrics_log import read_rows

    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "svm"]
    if not rows:
        raise UserError(f"{folder}: holds no pre-training run with a linear SVM; run make quickstart first")
    config = load_recipe(folder / "config.yaml")
    found = {"untrained": rows[0]} if rows[0]["epoch"] is None else {}
    found["this run"] = rows[-1]
    shown = {name: _accuracy(row["accuracy"], row.get("chosen_accuracy")) for name, row in found.items()}
    shown["small weights"] = _of_weights(ckpts, config, rows[-1]["C"])
    how = "C cross-validated" if rows[-1].get("chosen_C") is not None else f"C {rows[-1]['C']:g}"
    return f"linear SVM on held-out clouds of {rows[-1]['data']}, {how}: " + ", ".join(
        f"{name} {text}" for name, text in shown.items()
    )


def _accuracy(published: float, chosen: float | None) -> str:
    return f"{100 * (published if chosen is None else chosen):.1f} %"


def _of_weights(ckpts: str, config, C: float) -> str:
    """Return the accuracy of a checkpoint's features on the sets of a run, or why there is none."""
    from datasets import build_dataset
    from models import build_model, load_weights
    from tools.features import extract_features, linear_svm
    from tools.weights.names import resolve
    from utils.files import read_checkpoint

    try:
        checkpoint = read_checkpoint(resolve(ckpts, model=config.model.NAME))
    except UserError as error:
        return f"are not compared ({error})"
    saved = checkpoint.get("config")
    if not isinstance(saved, dict):
        return f"are not compared ({ckpts}: does not say which model it is of)"
    model = build_model(saved["model"])
    load_weights(model, checkpoint)
    options = {"batch_size": config.svm.batch_size, "seed": config.seed, "device": "cpu"}
    sets = (build_dataset(entry) for entry in (config.dataset.svm.train, config.dataset.svm.test))
    features = [part for clouds in sets for part in extract_features(model, clouds, **options)]
    result = linear_svm(*features, C=C, choose=config.svm.cross_validate)
    return _accuracy(result.accuracy, result.chosen_accuracy)


if __name__ == "__main__":
    sys.exit(main())
