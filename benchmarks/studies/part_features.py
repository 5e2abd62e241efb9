"""How well frozen tokens tell parts apart: a point takes the part of its five nearest features in training clouds of its category.

    python -m benchmarks.studies.part_features --config cfgs/segmentation/point-m2ae/psb_parts-tiny.yaml --data_root /data \\
        --ckpts experiments/pre-training/point-m2ae/modelnet10-tiny/seed{0,1,2}/ckpt-last.pth --out features.json

Nothing is trained. With the encoders of `--ckpts`, as many with random weights are evaluated, and the bare coordinates. A feature is the
tokens of each scale, interpolated to the point and scaled to length one, side by side.

Shapes: `M` clouds, `N` points, `C` channels.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from datasets import Batches, CloudSet, build_dataset
from datasets.part_table import owned_parts
from models import build_model, load_weights
from models.layers.propagate import interpolate
from segmentation.metrics import PartScores, score_parts
from tools.launch import load_recipe

NEIGHBORS = 5
POINTS = 256  # of each cloud that are compared; the encoder sees all


def main(arguments: list[str] | None = None) -> None:
    """Evaluate coordinates, random and pre-trained encoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="recipe of a part segmenter")
    parser.add_argument("--ckpts", nargs="+", required=True, metavar="PTH", help="pre-trained encoders, one a seed")
    parser.add_argument("--data_root")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(arguments)
    config = load_recipe(args.config, overrides=args.set, data_root=args.data_root)
    train, test = build_dataset(config.dataset.train), build_dataset(config.dataset.test)
    found: dict[str, list[PartScores]] = {"coordinates": [evaluate(None, train, test)], "random": [], "pretrained": []}
    for seed, path in enumerate(args.ckpts):
        torch.manual_seed(seed)
        model = build_model(config.model).eval()
        found["random"].append(evaluate(model, train, test))
        load_weights(model, path)
        found["pretrained"].append(evaluate(model, train, test))
    rows = {name: summarise(scores) for name, scores in found.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"config": args.config, "results": rows}, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name}: instance mIoU {row['instance_miou']['mean']:.2f} ± {row['instance_miou']['std']:.2f} %")


def evaluate(model: nn.Module | None, train: CloudSet, test: CloudSet) -> PartScores:
    """Label the points of one set by their neighbours in the other; None compares coordinates."""
    known, parts, owners = features(model, train)
    asked, true, categories = features(model, test)
    predicted = torch.empty_like(true)
    for category in categories.unique().tolist():
        support = known[owners == category].flatten(0, 1)  # (M * N, C)
        labels = parts[owners == category].flatten()
        for row in torch.nonzero(categories == category).flatten().tolist():
            nearest = torch.cdist(asked[row], support).topk(NEIGHBORS, largest=False).indices
            predicted[row] = labels[nearest].mode(1).values
    owned = owned_parts(test.category_parts, test.class_names, len(test.part_names))
    return score_parts(predicted.numpy(), true.numpy(), categories.numpy(), owned)


@torch.inference_mode()
def features(model: nn.Module | None, clouds: CloudSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (M, N, C), parts (M, N) and categories (M,) of the first points of each cloud."""
    found = []
    for batch in Batches(clouds, batch_size=16, seed=0, shuffle=False, drop_last=False).evaluation():
        points = batch.points[:, :POINTS]
        values = points
        if model is not None:
            tokens = model.tokens(model.group(batch.points))
            values = torch.cat([normalize(interpolate(points, *pair), dim=-1) for pair in tokens], dim=-1)
        found.append((values, batch.parts[:, :POINTS], batch.labels))
    values, parts, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return values, parts, labels


def summarise(scores: list[PartScores]) -> dict:
    """Return mean, sample standard deviation and single values in percent."""
    summary = {}
    for name in scores[0].row():
        values = [round(100 * found.row()[name], 2) for found in scores]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        summary[name] = {"mean": round(float(np.mean(values)), 2), "std": round(spread, 2), "values": values}
    return summary


if __name__ == "__main__":
    main()
