"""From flags to a run: which method, which configuration, which folder; nothing is computed yet."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datasets import DATASETS
from datasets.few_shot import fold_file
from models import MODELS, build_model
from models.weights import method_of
from tools.checkpoint_model import model_of_checkpoint
from tools.context import RunContext
from tools.published import pcp_mae
from tools.published.keys import OLD_NAMES
from tools.published.paths import Recipe, find_recipe
from tools.resume import check_resumed
from tools.run_folder import check_folder, experiment_folder, is_training, lock_folder
from tools.weights.names import resolve
from utils import ROOT
from utils.config.cli import FOLDS
from utils.config.load import load_config, read_recipe
from utils.config.merge import to_dict
from utils.config.schema import RunConfig
from utils.config.yaml import save_config
from utils.device import check_precision
from utils.dist import barrier, is_main, rank
from utils.errors import UserError, suggest
from utils.files import read_checkpoint
from utils.log import Logger
from utils.provenance import record
from utils.registry import import_file


def open_run(args: argparse.Namespace, device: torch.device) -> RunContext:
    """Load the configuration, make the folder of the run and start its log.

    Raises:
        UserError: bad flags, configuration or checkpoint; a folder that holds a run already, is in use or cannot be written.
    """
    for file in args.imports:
        import_file(Path(file) if Path(file).is_file() else None, f"--import {file}")
    _resolve_names(args)
    checkpoint = read_checkpoint(args.ckpts or args.start_ckpts) if args.ckpts or args.start_ckpts else None
    method = _method(args, checkpoint)
    recipe = find_recipe(args.config, method)
    if args.transfer and recipe.task == "segmentation":
        raise UserError("--transfer: is not for part segmentation; leave it out, or use another recipe")
    _check_tune(args, recipe)
    folder = experiment_folder(args, recipe.path)
    check_folder(args, folder)
    notes: list[str] = []
    config = load_recipe(
        recipe,
        overrides=overrides_of(args, recipe.path, method),
        imports=args.imports,
        data_root=args.data_root,
        change_model=lambda model: _model_to_build(args, recipe, model, checkpoint, notes),
    )
    notes += _changes(args, config, folder)
    barrier()  # every process has checked the folder before one writes
    check_precision(config.precision, device)
    run = _open(args, config, folder, device)
    run.log.info(_first_line(run))
    if recipe.path.resolve() not in (Path(args.config).resolve(), (ROOT / args.config).resolve()):
        notes.insert(0, f"{args.config} stands for {_portable(recipe.path, ROOT)} ({recipe.method})")
    for note in [*notes, *args.notes]:
        run.log.info(note)
    return run


def _resolve_names(args: argparse.Namespace) -> None:
    """Replace names of weights in --ckpts and --start_ckpts by their files; `mini` is that of the recipe's method."""
    for flag in ("ckpts", "start_ckpts"):
        name = getattr(args, flag)
        if name:
            setattr(args, flag, str(weights_file(name, args.config, args.method)))


def weights_file(name: str, config: str | Path | None, method: str | None = None) -> Path:
    """Return the file that `--ckpts` means: `mini` is that of the method of the recipe `config`, where one is given.

    Raises:
        UserError: as `tools.weights.resolve`, or there is no such recipe.
    """
    return resolve(name, model=_model_of_recipe(config, method) if name == "mini" and config else None)


def _model_of_recipe(config: str | Path, method: str | None) -> str | None:
    """Return the method of a recipe, or the registered NAME of its model where its place does not say the method."""
    recipe = find_recipe(config, method)
    return recipe.method or (read_recipe(recipe.path, OLD_NAMES).get("model") or {}).get("NAME")


def _open(args: argparse.Namespace, config: RunConfig, folder: Path, device: torch.device) -> RunContext:
    """Make the folder of a run, keep other processes from training into it, and begin its log and files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder) if is_main() and is_training(args) else contextlib.nullcontext()
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); run from a folder that you may write to"
        ) from error
    run = RunContext(config, args, folder, device, Logger(folder, rank()), lock)
    if is_main():
        _write_config(run)
    barrier()
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


def _method(args: argparse.Namespace, checkpoint: dict | None) -> str | None:
    """Return the method that a path without one stands for: `--method`, else that of the checkpoint."""
    if args.method and args.method not in methods():
        raise UserError(f"--method {args.method}: is unknown; {suggest(args.method, methods())}")
    return args.method if args.method or checkpoint is None else method_of(checkpoint)


def _model_to_build(
    args: argparse.Namespace, recipe: Recipe, model: Any, checkpoint: dict | None, notes: list[str]
) -> Any:
    """Return the configuration of the model that the one in `--ckpts` asks for, where there is one; `notes` get what the log is to say."""
    saved = checkpoint.get("config") if args.ckpts and checkpoint else None
    said = [text.partition("=")[0].strip().split(".") for text in args.set]
    if not isinstance(saved, dict) or ["model"] in said:
        return model
    model, line = model_of_checkpoint(
        model,
        saved.get("model"),
        whole=not is_training(args),
        recipe_keys=set(_names(read_recipe(recipe.path, OLD_NAMES).get("model"))),
        flag_keys={key for keys in said if keys[0] == "model" and keys[-1] != "legacy" for key in (keys[1], keys[-1])},
    )
    notes += [f"{args.ckpts}: {line}"] if line else []
    return model


def _check_tune(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raise where `--tune` is given for a model that has no such keys."""
    name = (read_recipe(recipe.path, OLD_NAMES).get("model") or {}).get("NAME")
    if args.tune and name in MODELS and "tune" not in MODELS.entry(name).config.__dataclass_fields__:
        raise UserError(
            f"--tune {args.tune}: {name} is neither classifier nor part segmenter; use a recipe of cfgs/fine-tuning/, cfgs/few-shot/ or "
            "cfgs/segmentation/"
        )


def _names(model: Any) -> Iterator[str]:
    """Yield the keys of a model in a recipe, those of its encoder included."""
    for key, value in (model or {}).items():
        yield key
        if isinstance(value, dict):
            yield from _names(value)


def _changes(args: argparse.Namespace, config: RunConfig, folder: Path) -> list[str]:
    """Return what differs from the configuration that the run of a folder was trained with so far."""
    last = folder / "ckpt-last.pth"
    if not (args.resume and last.exists()):
        return []
    before = read_checkpoint(last).get("config")
    lines = check_resumed(before, to_dict(config), str(last), allowed=args.allow_changes)
    return [f"resumed with another configuration: {line}" for line in lines]


def _first_line(run: RunContext) -> str:
    """Say what a command does: task, model, size, data, device, folder."""
    config, args = run.config, run.args
    with torch.device("meta"):
        model = build_model(config.model)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    entries = config.dataset
    if args.predict or getattr(args, "input", None):
        data = args.predict or args.input
    elif args.test_svm:
        svm = entries.svm.train if entries.svm else entries.train
        data = svm.NAME if args.test_svm == "own" and svm else args.test_svm
    else:
        order = (entries.test, entries.val, entries.train) if args.test else (entries.train, entries.val, entries.test)
        data = next((entry.NAME for entry in order if entry is not None), "no data set")
    task = "evaluating" if not is_training(args) else "training" if hasattr(model, "loss") else "pre-training"
    return f"{task} {config.model.NAME}, {size:.2f} M parameters, on {data}, {run.device}, in {_portable(run.folder)}"


def _portable(path: Path, folder: Path | None = None) -> str:
    """Return a path relative to a folder, by default the working directory, where it is below."""
    folder = folder or Path.cwd()
    return path.relative_to(folder).as_posix() if path.is_absolute() and path.is_relative_to(folder) else str(path)


def overrides_of(args: argparse.Namespace, path: Path, method: str | None = None) -> list[str]:
    """Return all that a command line changes in the recipe `path`, as "key.path=value" each."""
    return [*pcp_mae.settings(path, method), *args.set, *_few_shot(args, path)]


def _few_shot(args: argparse.Namespace, path: Path) -> list[str]:
    """Return what --way, --shot and --fold say to the data-set entries of a recipe."""
    if args.way == -1:
        return []
    sets = read_recipe(path, OLD_NAMES).get("dataset") or {}
    entries = [name for name in ("train", "val", "test") if sets.get(name) is not None]
    return [f"dataset.{entry}.{key}={getattr(args, key)}" for entry in entries for key in ("way", "shot", "fold")]


def check_folds(args: argparse.Namespace) -> None:
    """Look for the files of all folds before the first one is trained on.

    Raises:
        UserError: some are missing; all of them are named.
    """
    if args.fold != "all":
        return
    recipe = find_recipe(args.config, args.method)
    first = argparse.Namespace(**{**vars(args), "fold": 0})
    overrides = [*args.set, *_few_shot(first, recipe.path)]
    config = load_recipe(recipe, overrides=overrides, imports=args.imports, data_root=args.data_root)
    entries = (
        entry for entry in (config.dataset.train, config.dataset.val) if getattr(entry, "fold", None) is not None
    )
    missing: dict[int, UserError] = {}
    for entry in entries:
        for fold in range(FOLDS):
            try:
                fold_file(replace(entry, fold=fold))
            except UserError as error:
                missing[fold] = error
    if missing:
        raise UserError(
            f"--fold all: {len(missing)} of {FOLDS} folds are missing ({', '.join(map(str, missing))}), nothing was trained; the first: "
            f"{next(iter(missing.values()))}. Draw them with python -m datasets.prepare few-shot, or give one --fold"
        )


def _write_config(run: RunContext) -> None:
    """Save the resolved configuration; with `--overwrite`, first remove what this run would append to."""
    if not is_training(run.args):
        return
    if run.args.overwrite:
        written = ("metrics.jsonl", "report.html", "result.json", "predictions.txt")
        for pattern in ("ckpt-*.pth", *written, "*.png", "TFBoard/*/events.*"):
            for path in run.folder.glob(pattern):
                path.unlink()
    save_config(run.config, run.folder / "config.yaml")
    record(run.folder, resumed=run.args.resume)
