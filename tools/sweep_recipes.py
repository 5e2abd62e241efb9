"""The recipes of a folder as rows of one table: each checked before anything runs, each with the keys in which it differs from the base."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models import build_model
from tools.launch import load_recipe, overrides_of, weights_file
from tools.published.paths import find_recipe
from tools.results import check_weights
from tools.resume import changes, serious_changes
from tools.run_folder import experiment_folder
from tools.summary_runs import Run, flat_keys, read_run
from utils.config.cli import parse_args
from utils.config.merge import to_dict
from utils.config.yaml import read_yaml
from utils.errors import UserError

BASE = "base"  # the recipe that the others are compared with
TRAINS_A_CLASSIFIER = ("--finetune_model", "--scratch_model")


@dataclass(frozen=True)
class Row:
    """A recipe of a sweep.

    Args:
        changes: the keys in which it differs from the base, with their values; empty for the base itself.
        folder: where its runs `seed0`, `seed1` ... are.
        arguments: the command line of the main program, without seeds.
        config: the resolved recipe as plain data; of a run that takes weights without its model, which they may change.
        weights: the checkpoint that runs start from, or None.
    """

    name: str
    path: Path
    changes: str
    folder: Path
    arguments: tuple[str, ...]
    config: Mapping = field(compare=False, repr=False)
    weights: str | None = None

    def run(self, seed: int) -> Run | None:
        """Return the complete run of a seed, or None where there is none yet."""
        folder = self.folder / f"seed{seed}"
        if not (folder / "result.json").is_file():
            return None
        run = read_run(folder)
        return None if run.note or "max_epoch" in changes(read_yaml(folder / "config.yaml"), self.config) else run

    def check_same(self, seeds: Sequence[int]) -> None:
        """Raise where a run of the row was begun with another configuration, or other weights, than its recipe and the flags now give.

        Raises:
            UserError: naming the folder and the keys.
        """
        for seed in seeds:
            if (self.folder / f"seed{seed}" / "result.json").is_file():
                check_weights(self.folder / f"seed{seed}" / "result.json", self.weights)
            path = self.folder / f"seed{seed}" / "config.yaml"
            found = serious_changes(changes(read_yaml(path), self.config)) if path.is_file() else []
            if found:
                raise UserError(
                    f"{path.parent}: was run with another configuration: {'; '.join(found)}. Choose another --name, or remove the folder"
                )


def read_rows(folder: Path, *, name: str, flags: Sequence[str]) -> list[Row]:
    """Read and check all recipes of a folder, the base first, the others by name.

    Args:
        name: of the sweep, the first part of `--exp_name`.
        flags: further flags of the main program.

    Raises:
        UserError: no recipes, or one that does not load, names a key that its method does not have, does not build, or needs other flags.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give one of recipes, such as cfgs/ablation/point-m2ae")
    paths = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != BASE, path.stem))
    if not paths:
        raise UserError(f"{folder}: has no recipes, files that end in .yaml")
    rows, base = [], None
    for path in paths:
        arguments = ["--config", str(path), "--exp_name", name, *flags]
        args = parse_args(arguments)
        config = _check(path, args)
        keys = dict(flat_keys(config))
        base = keys if base is None else base
        place = experiment_folder(args, find_recipe(path).path)
        weights = str(weights_file(args.ckpts, path, args.method)) if args.ckpts else None
        if weights:
            config.pop("model")
        rows.append(Row(path.stem, path, _changes(base, keys), place, tuple(arguments), config, weights))
    return rows


def _check(path: Path, args: argparse.Namespace) -> dict[str, object]:
    """Load a recipe and build its model without memory; returns the configuration as plain data.

    Raises:
        UserError: as `read_rows`.
    """
    config = load_recipe(path, overrides=overrides_of(args, path), imports=args.imports, data_root=args.data_root)
    with torch.device("meta"):
        build_model(config.model)
    classifies, flagged = hasattr(config.model, "cls_dim"), args.finetune_model or args.scratch_model
    if classifies and not hasattr(config.model, "num_parts") and not flagged:
        raise UserError(
            f"{path}: trains a classifier; add -- {' or '.join(TRAINS_A_CLASSIFIER)}, the former with --ckpts PATH"
        )
    return to_dict(config)


def _changes(base: Mapping[str, object], keys: Mapping[str, object]) -> str:
    names = list(dict.fromkeys([*base, *keys]))
    return ", ".join(f"{name}={keys.get(name)}" for name in names if base.get(name) != keys.get(name))
