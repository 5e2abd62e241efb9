"""Evaluate checkpoints of Inter-MAE by retrieval from image to cloud on the set that their recipe holds out.

    python -m benchmarks.studies.retrieval experiments/pre-training/inter-mae/modelnet10-tiny/*/seed* --svm --out retrieval.json

Each folder is that of a run. Of every cloud one picture is drawn at random and encoded as in training, the cloud from its visible
patches. The same is done with the weights from which the run began; `--svm` evaluates these by the linear SVM of the recipe as well.
"""

import argparse
import json
import logging
from pathlib import Path

import torch

from benchmarks.studies.compare import write_study
from datasets import DATASETS, build_dataset
from models import MODELS, build_model
from tools.context import RunContext
from tools.guides.inter_mae import PictureGuide, build
from tools.retrieval import retrieval
from tools.svm import LinearProbe
from utils.config.load import saved_config
from utils.files import read_checkpoint
from utils.seed import seed_everything


def main() -> None:
    """Evaluate all runs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", type=int, default=1 << 30, help="clouds at most (default: all)")
    parser.add_argument("--svm", action="store_true", help="also the linear SVM of the untrained encoder")
    args = parser.parse_args()
    found = {}
    for folder in args.runs:
        name = f"{folder.parent.name}_{folder.name}"  # such as published_seed0
        found[name] = evaluate(folder, args.count, svm=args.svm)
        print(name, json.dumps(found[name]))
    write_study(args.out, found)


def evaluate(folder: Path, count: int, *, svm: bool) -> dict:
    """Return what retrieval reaches with the last weights of a run and with those before training."""
    checkpoint = read_checkpoint(folder / "ckpt-last.pth")
    config = saved_config(checkpoint["config"], str(folder), models=MODELS, datasets=DATASETS)
    flags = argparse.Namespace(sync_bn=False)
    run = RunContext(config, flags, folder, torch.device("cpu"), logging.getLogger("m2ae"))
    seed_everything(config.seed)
    model = build_model(config.model)
    guide: PictureGuide = build(run, model, build_dataset(config.dataset.train))
    results = {"before training": score(guide, model, count)}
    if svm:
        found = LinearProbe.from_config(run).evaluate(model, choose=True)
        results["before training"] |= {f"linear SVM, C {found.C:g}": round(100 * found.accuracy, 3)}
        results["before training"] |= {"linear SVM, cross-validated C": round(100 * found.chosen_accuracy, 3)}
    model.load_state_dict(checkpoint["base_model"])
    results["after training"] = score(guide, model, count)
    return results


def score(guide: PictureGuide, model: torch.nn.Module, count: int) -> dict:
    """Return what retrieval reaches."""
    pairs = guide.pairs(model, count=count)
    found = retrieval(pairs.cosines, pairs.labels)
    return {"pairs": len(pairs.clouds), "held out": pairs.held_out, **{k: round(v, 3) for k, v in found.items()}}


if __name__ == "__main__":
    main()
