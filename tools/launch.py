"""From flags to a run: which method, which configuration, which folder; nothing is computed yet."""

import argparse
from pathlib import Path

import torch

from datasets import DATASETS
from models import MODELS
from models.weights import method_of
from tools.context import RunContext
from tools.published.keys import OLD_NAMES
from tools.published.paths import Recipe, find_recipe
from tools.run_folder import check_folder, experiment_folder, is_training
from utils.config.load import load_config, read_recipe
from utils.config.schema import RunConfig
from utils.config.yaml import save_config
from utils.device import check_precision
from utils.dist import barrier, is_main, rank
from utils.errors import UserError, suggest
from utils.files import read_checkpoint, write_atomic
from utils.log import Logger
from utils.provenance import provenance
from utils.registry import import_file


def open_run(args: argparse.Namespace, device: torch.device) -> RunContext:
    """Load the configuration, make the folder of the run and start its log.

    Raises:
        UserError: bad flags, configuration or checkpoint; a folder that holds a run already or cannot be written.
    """
    for file in args.imports:
        import_file(Path(file) if Path(file).is_file() else None, f"--import {file}")
    method = _method(args)
    recipe = find_recipe(args.config, method)
    if args.transfer and recipe.task == "segmentation":
        raise UserError("--transfer: is not for part segmentation; leave it out, or use another recipe")
    overrides = [*args.set, *_few_shot(args, recipe.path)]
    config = load_recipe(recipe, overrides=overrides, imports=args.imports, data_root=args.data_root)
    folder = experiment_folder(args, recipe.path)
    check_folder(args, folder)
    barrier()  # every process has looked before one writes
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); run from a folder that you may write to"
        ) from error
    check_precision(config.precision, device)
    run = RunContext(config, args, folder, device, Logger(folder, rank()))
    if is_main():
        _write_config(run)
    barrier()
    if recipe.path.resolve() != Path(args.config).resolve():
        run.log.info(f"{args.config} stands for {recipe.path} ({recipe.method})")
    for note in args.notes:
        run.log.info(note)
    return run


def load_recipe(recipe: Recipe | str | Path, *, method: str | None = None, **options) -> RunConfig:
    """Load a recipe, any YAML file or a published path, with the models and data sets that are registered.

    Args:
        method: chooses among the methods that share a published path.
        options: as in `load_config`.

    Raises:
        UserError: naming file, key and remedy.
    """
    file = recipe.path if isinstance(recipe, Recipe) else find_recipe(recipe, method).path
    return load_config(file, models=MODELS, datasets=DATASETS, old=OLD_NAMES, **options)


def methods() -> list[str]:
    """Return the methods that are registered, as `--method` calls them."""
    return sorted({target.method for target in MODELS.targets() if hasattr(target, "method")})


def _method(args: argparse.Namespace) -> str | None:
    """Return the method that a path without one stands for: `--method`, else that of the checkpoint."""
    path = args.ckpts or args.start_ckpts
    if args.method and args.method not in methods():
        raise UserError(f"--method {args.method}: is unknown; {suggest(args.method, methods())}")
    if args.method or not path:
        return args.method
    return method_of(read_checkpoint(path))


def _few_shot(args: argparse.Namespace, path: Path) -> list[str]:
    """Return what --way, --shot and --fold say to the data-set entries of a recipe."""
    if args.way == -1:
        return []
    sets = read_recipe(path, OLD_NAMES).get("dataset") or {}
    entries = [name for name in ("train", "val", "test") if sets.get(name) is not None]
    return [f"dataset.{entry}.{key}={getattr(args, key)}" for entry in entries for key in ("way", "shot", "fold")]


def _write_config(run: RunContext) -> None:
    """Save the resolved configuration; with `--overwrite`, first remove what this run would append to."""
    if not is_training(run.args):
        return
    if run.args.overwrite:
        for pattern in ("ckpt-*.pth", "metrics.jsonl", "report.html", "*.png", "TFBoard/*/events.*"):
            for path in run.folder.glob(pattern):
                path.unlink()
    save_config(run.config, run.folder / "config.yaml")
    lines = "".join(f"{name}: {version}\n" for name, version in provenance().items())
    write_atomic(run.folder / "provenance.yaml", lambda file: file.write(lines.encode()))
