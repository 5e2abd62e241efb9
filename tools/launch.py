"""From flags to a run: which method, which configuration, which folder; nothing is computed yet."""

import argparse
from pathlib import Path

import torch

from datasets import DATASETS
from models import MODELS
from models.weights import method_of
from tools.context import RunContext
from tools.engine import check_precision
from utils.config.cli import experiment_folder
from utils.config.load import load_config
from utils.config.yaml import read_yaml, save_config
from utils.dist import barrier, is_main, rank
from utils.errors import UserError
from utils.files import read_checkpoint, write_atomic
from utils.log import Logger
from utils.provenance import provenance
from utils.recipes import find_recipe


def open_run(args: argparse.Namespace, device: torch.device) -> RunContext:
    """Load the configuration, make the folder of the run and start its log.

    Raises:
        UserError: bad flags, configuration or checkpoint; a folder that holds a run already or cannot be written.
    """
    method = _method(args)
    recipe = find_recipe(args.config, method)
    if args.transfer and recipe.task == "segmentation":
        raise UserError("--transfer: is not for part segmentation; leave it out, or use another recipe")
    overrides = [*args.set, *_few_shot(args, recipe.path)]
    config = load_config(
        args.config, overrides=overrides, models=MODELS, datasets=DATASETS, method=method, data_root=args.data_root
    )
    folder = experiment_folder(args, recipe.path)
    _check_folder(args, folder)
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


def is_training(args: argparse.Namespace) -> bool:
    return not (args.test or args.test_svm or args.predict)


def _method(args: argparse.Namespace) -> str | None:
    """Return the method that a path without one stands for: `--method`, else that of the checkpoint."""
    path = args.ckpts or args.start_ckpts
    if args.method or not path:
        return args.method
    return method_of(read_checkpoint(path))


def _few_shot(args: argparse.Namespace, path: Path) -> list[str]:
    """Return what --way, --shot and --fold say to the data-set entries of a recipe."""
    if args.way == -1:
        return []
    entries = [name for name in ("train", "val", "test") if name in (read_yaml(path).get("dataset") or {})]
    return [f"dataset.{entry}.{key}={getattr(args, key)}" for entry in entries for key in ("way", "shot", "fold")]


def _check_folder(args: argparse.Namespace, folder: Path) -> None:
    last = folder / "ckpt-last.pth"
    if is_training(args) and last.exists() and not (args.resume or args.overwrite):
        raise UserError(
            f"{folder}: holds a run already; go on with --resume, replace it with --overwrite, or choose another --exp_name"
        )
    # A run that was killed before its first checkpoint has a configuration only, and starts over.
    if args.resume and not last.exists() and not (folder / "config.yaml").exists():
        raise UserError(
            f"--resume: there is no {last}; start the run without --resume, or check --config and --exp_name"
        )


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
