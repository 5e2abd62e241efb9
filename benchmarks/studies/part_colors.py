"""What frozen features of patches and the colours made of them know of parts, trained against untrained encoders.

    python -m benchmarks.studies.part_colors point-m2ae=experiments/pre-training/point-m2ae/mini/mini \\
        point-mae=experiments/pre-training/point-mae/mini/mini --parts_root data/psb_parts_normal \\
        --out benchmarks/results/part-colors.json

A group is a folder of runs, `seed0`, `seed1` ... An untrained encoder has the weights that the run began with. The part of a patch is that
of its centre. Two quantities, in percent, of the patches of test clouds:

- linear probe: accuracy of a logistic regression from the feature of a patch to its part among the parts of all categories. It is fitted
  to patches of training clouds and is not told the category.
- colours: the share of the variance of the colours that lies between the parts of a category (eta squared): sums of squares over the three
  channels and all categories, each category less its mean. 100: a colour for each part; 0: colours that know nothing of parts. The colours
  are those of `python -m tools.look` with one picture for each category.

The same is done with the coordinates of the centres in place of features, and with parts that are shuffled within each category.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.studies.compare import write_study
from benchmarks.studies.frozen import spread
from datasets import DATASETS, CloudSet, build_dataset
from datasets.transforms import normalize_unit_sphere
from models import MODELS, build_model
from tools.look.capture import observe
from tools.look.projection import principal_axes
from tools.probes import logistic_probe
from utils.config.load import saved_config
from utils.files import read_checkpoint
from utils.seed import seed_everything

POINTS = 1024
CENTERS = 32  # of each cloud, where coordinates stand in for features
MOST_CLOUDS = 120  # of each split
MOST_PATCHES = 2500  # that the probe is fitted to
SUBSETS = ("train", "test")


class Patches(NamedTuple):
    """The patches of the clouds of a set at one scale."""

    features: np.ndarray  # (P, C) float32
    parts: np.ndarray  # (P,) global part ids
    categories: np.ndarray  # (P,)


def main(arguments: list[str] | None = None) -> None:
    """Evaluate all runs of all groups, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--parts_root", metavar="DIR", help="a further set in the layout of ShapeNetPart")
    parser.add_argument("--clouds", type=int, default=MOST_CLOUDS, help="at most, of each split (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args(arguments)
    groups = {}
    for text in args.groups:
        group, _, folder = text.partition("=")
        groups[group] = sorted(Path(folder).glob("*/ckpt-last.pth"))
        if not groups[group]:
            parser.error(f"{text}: expected NAME=FOLDER with runs in it, such as FOLDER/seed0/ckpt-last.pth")
    found = {}
    for name, (train, test) in open_sets(args.parts_root, args.clouds).items():
        coordinates = tuple(centers(clouds) for clouds in (train, test))
        rows = {
            "shuffled parts": {"coordinates": summary([evaluate(*map(shuffled, coordinates))])},
            "centres": {"coordinates": summary([evaluate(*coordinates)])},
        }
        for group, runs in groups.items():
            rows |= evaluate_group(group, runs, train, test)
        found[name] = rows
    write_study(args.out, found)
    print(table(found), end="")


def open_sets(parts_root: str | None, most: int) -> dict[str, tuple[CloudSet, CloudSet]]:
    """Return at most so many training and test clouds of each set, spread evenly over it."""
    entries: dict[str, dict[str, Any]] = {"built-in set": {"NAME": "Synthetic", "N_POINTS": POINTS, "clouds": most}}
    if parts_root:
        entries[Path(parts_root).name] = {"NAME": "ShapeNetPart", "ROOT": parts_root, "npoints": POINTS}
    found = {}
    for name, entry in entries.items():
        splits = [build_dataset(entry | {"subset": subset}) for subset in SUBSETS]
        found[name] = tuple(
            clouds.select(np.linspace(0, len(clouds) - 1, min(most, len(clouds))).astype(int)) for clouds in splits
        )
    return found


def evaluate_group(name: str, runs: Sequence[Path], train: CloudSet, test: CloudSet) -> dict[str, Any]:
    """Evaluate the encoders of all runs, before and after training: scale -> state -> quantity."""
    found: dict[str, dict[str, list]] = {}
    for path in runs:
        checkpoint = read_checkpoint(path)
        config = saved_config(checkpoint["config"], str(path), models=MODELS, datasets=DATASETS)
        seed_everything(config.seed)
        model = build_model(config.model).eval()
        for state in ("untrained", "pre-trained"):
            scales = zip(*(patches(model, clouds) for clouds in (train, test)), strict=True)
            for scale, pair in enumerate(scales):
                row = found.setdefault(f"{name}, scale {scale}", {})
                row.setdefault(state, []).append(evaluate(*pair))
            model.load_state_dict(checkpoint["base_model"])
    return {row: {state: summary(values) for state, values in states.items()} for row, states in found.items()}


def patches(model: nn.Module, clouds: CloudSet) -> list[Patches]:
    """Encode points of each cloud; returns the patches of every scale, finest first."""
    scales: list[list[Patches]] = []
    for row in range(len(clouds)):
        points, parts = sample(clouds, row)
        placed, found = observe(model, points)
        scales = scales or [[] for _ in found]
        for kept, scale in zip(scales, found, strict=True):
            distance = ((scale.centers[:, None] - placed.numpy()) ** 2).sum(2)
            kept.append(_of_cloud(scale.features, parts[distance.argmin(1)], clouds.labels[row]))
    return [_joined(kept) for kept in scales]


def sample(clouds: CloudSet, row: int) -> tuple[Tensor, np.ndarray]:
    """Return points (n, 3) of a cloud, in the unit sphere, drawn at random, and their parts (n,)."""
    drawn = np.random.default_rng(row).permutation(clouds.points.shape[1])[:POINTS]
    points = torch.from_numpy(clouds.points[row][drawn])[None]
    return normalize_unit_sphere(points)[0], clouds.part_labels[row][drawn]


def centers(clouds: CloudSet) -> Patches:
    """Return the coordinates of some points of each cloud in place of features."""
    drawn = [sample(clouds, row) for row in range(len(clouds))]
    return _joined(
        [
            _of_cloud(points[:CENTERS].numpy(), parts[:CENTERS], category)
            for (points, parts), category in zip(drawn, clouds.labels, strict=True)
        ]
    )


def _of_cloud(features: np.ndarray, parts: np.ndarray, category: int) -> Patches:
    return Patches(features, parts, np.full(len(parts), category))


def _joined(kept: Sequence[Patches]) -> Patches:
    return Patches(*(np.concatenate(column) for column in zip(*kept, strict=True)))


def shuffled(kept: Patches) -> Patches:
    """Return patches whose parts are shuffled within each category."""
    random, parts = np.random.default_rng(0), kept.parts.copy()
    for category in np.unique(kept.categories):
        rows = np.flatnonzero(kept.categories == category)
        parts[rows] = random.permutation(parts[rows])
    return kept._replace(parts=parts)


def evaluate(train: Patches, test: Patches) -> dict[str, float]:
    """Return both quantities in percent."""
    taken = np.random.default_rng(0).permutation(len(train.parts))[:MOST_PATCHES]
    accuracy, _ = logistic_probe(train.features[taken], train.parts[taken], test.features, test.parts)
    return {"linear probe": 100 * accuracy, "colours": 100 * between_parts(test)}


def between_parts(kept: Patches) -> float:
    """Return the share of the variance of the colours that lies between the parts of a category."""
    within, total = 0.0, 0.0
    for category in np.unique(kept.categories):
        rows = kept.categories == category
        features, parts = kept.features[rows], kept.parts[rows]
        colors = principal_axes([features]).colors(features).astype(np.float64)
        total += _squares(colors)
        within += sum(_squares(colors[parts == part]) for part in np.unique(parts))
    return 1 - within / total


def _squares(values: np.ndarray) -> float:
    return float(((values - values.mean(0)) ** 2).sum())


def summary(runs: Sequence[dict[str, float]]) -> dict[str, dict]:
    """Return mean, sample standard deviation and single values of each quantity."""
    return {quantity: spread([run[quantity] for run in runs]) for quantity in runs[0]}


def table(found: dict) -> str:
    """Return the comparison as Markdown."""
    lines = []
    for name, rows in found.items():
        lines += [f"| {name} | | linear probe | colours |", "|---|---|---|---|"]
        for row, states in rows.items():
            for state, quantities in states.items():
                cells = " | ".join(f"{one['mean']:.1f} ± {one['std']:.1f}" for one in quantities.values())
                lines.append(f"| {row} | {state} | {cells} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
