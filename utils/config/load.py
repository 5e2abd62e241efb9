"""From a YAML file, `--set` overrides and the registered NAMEs to a resolved `RunConfig`."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from utils.config.merge import merge, to_dict
from utils.config.schema import (
    DatasetsConfig,
    OptimizerConfig,
    OptimizerKwargs,
    RunConfig,
    SchedulerConfig,
    SchedulerKwargs,
    SVMConfig,
    SVMDatasets,
)
from utils.config.yaml import parse_value, read_yaml, save_config
from utils.errors import UserError
from utils.recipes import DEAD_KEYS, ROOT, Recipe, dataset_file, find_recipe
from utils.registry import Registry

__all__ = [
    "DatasetsConfig",
    "OptimizerConfig",
    "OptimizerKwargs",
    "Recipe",
    "RunConfig",
    "SVMConfig",
    "SVMDatasets",
    "SchedulerConfig",
    "SchedulerKwargs",
    "find_recipe",
    "load_config",
    "merge",
    "read_yaml",
    "save_config",
    "saved_config",
    "to_dict",
]

_LOG = logging.getLogger("m2ae.config")
_ENTRIES = tuple(field.name for field in fields(DatasetsConfig) if field.name != "svm")
# GM3D's names of the two sets of the linear SVM.
_SVM_NAMES = {"extra_train_svm": "train", "extra_test_svm": "test"}


def load_config(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    models: Registry,
    datasets: Registry,
    method: str | None = None,
    data_root: str | Path | None = None,
) -> RunConfig:
    """Load a recipe, ours or a published file, and check it.

    Args:
        path: a file, or a published path (`find_recipe`).
        overrides: "key.path=value" each, the value as YAML; over the file, before anything is checked. Keys of a
            data-set entry are set directly (`dataset.train.npoints=1024`).
        models, datasets: registers of NAMEs.
        method: chooses among the methods that share a published path.
        data_root: replaces a leading `data/` in the paths of data sets.

    Raises:
        UserError: naming file, key and remedy.
    """
    file = find_recipe(path, method).path
    return _resolve(read_yaml(file), file, _short(file), overrides, models, datasets, data_root)


def saved_config(
    tree: Mapping, where: str, *, overrides: Sequence[str] = (), models: Registry, datasets: Registry
) -> RunConfig:
    """Check a resolved configuration, such as a checkpoint holds, as `load_config` checks a file.

    Args:
        tree: what `to_dict` made of a `RunConfig`; it is left as it is.
        where: where it stands, for messages.

    Raises:
        UserError: naming key and remedy.
    """
    return _resolve(deepcopy(dict(tree)), ROOT, where, overrides, models, datasets, None)


def _resolve(
    tree: dict, file: Path, name: str, overrides: Sequence[str], models: Registry, datasets: Registry, data_root
) -> RunConfig:
    """Set the overrides in a raw tree and check it; bases are looked for beside `file`."""
    where = name + (f" (with --set {' '.join(overrides)})" if overrides else "")
    pairs = [_split(override) for override in overrides]
    # A new base must be known before entries are resolved; everything else is set over the resolved entries.
    for keys, value in pairs:
        if keys[-1] == "_base_":
            _set(tree, keys, value)
    dataset = tree.get("dataset")
    if dataset is not None:
        tree["dataset"] = _flatten_datasets(dataset, file, f"{where}: dataset")
    for keys, value in pairs:
        if keys[-1] != "_base_":
            _set(tree, [key for key in keys if not (key == "others" and keys[0] == "dataset")], value)
    return _build(tree, where, models, datasets, data_root)


def _build(tree: dict, where: str, models: Registry, datasets: Registry, data_root) -> RunConfig:
    """Turn a raw tree into dataclasses, strictly."""
    if "model" not in tree:
        raise UserError(f"{where}: has no model; add model.NAME, one of {', '.join(models.names())}")
    tree, ignored = _without_dead_keys(tree, _declared(tree, models, where))
    tree["model"] = models.config(tree["model"], f"{where}: model")
    tree["dataset"] = _build_datasets(tree.get("dataset", {}), f"{where}: dataset", datasets, data_root)
    if hasattr(tree["model"], "published_augmentation"):
        tree.setdefault("augmentation", tree["model"].published_augmentation)
    config = merge(RunConfig, tree, where)
    config.ignored = ignored
    if ignored:
        _LOG.warning("%s: keys without effect were left out: %s", where, ", ".join(ignored))
    _check_points(config, where)
    return config


def _split(override: str) -> tuple[list[str], Any]:
    """Split "a.b=v" into (["a", "b"], parsed v)."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected key.path=value, for example --set optimizer.kwargs.lr=1e-3")
    return keys, parse_value(text, f"--set {override}")


def _set(tree: dict, keys: list[str], value: Any) -> None:
    node = tree
    for depth, key in enumerate(keys[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, Mapping):
            done = ".".join(keys[: depth + 1])
            raise UserError(f"--set {'.'.join(keys)}: {done} is {node!r}, which has no keys; set {done} as a whole")
    node[keys[-1]] = value


def _flatten_datasets(dataset: Any, file: Path, where: str) -> dict:
    """Replace `{_base_, others}` entries by their keys, and give the SVM's two sets one name."""
    if not isinstance(dataset, Mapping):
        raise UserError(f"{where}: is {dataset!r}; expected the entries train, val, test, svm")
    flat = dict(dataset)
    if flat.get("svm") is not None and not isinstance(flat["svm"], Mapping):
        raise UserError(f"{where}.svm: is {flat['svm']!r}; expected the entries train and test")
    for name in [name for name in _SVM_NAMES if name in flat]:
        flat["svm"] = {**(flat.get("svm") or {}), _SVM_NAMES[name]: flat.pop(name)}
    for name in _ENTRIES:
        if flat.get(name) is not None:
            flat[name] = _flatten_entry(flat[name], file, f"{where}.{name}")
    if isinstance(flat.get("svm"), Mapping):
        flat["svm"] = {
            name: _flatten_entry(entry, file, f"{where}.svm.{name}") if name in ("train", "test") else entry
            for name, entry in flat["svm"].items()
        }
    return flat


def _flatten_entry(entry: Any, file: Path, where: str) -> dict:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: is {entry!r}; expected _base_ and others, or NAME and its keys")
    keys = dict(entry)
    base, others = keys.pop("_base_", None), keys.pop("others", None)
    if isinstance(base, Mapping):  # As the published programs leave it in memory.
        flat = dict(base)
    else:
        flat = read_yaml(_find_base(base, file, where)) if base is not None else {}
    if others is not None and not isinstance(others, Mapping):
        raise UserError(f"{where}.others: is {others!r}; expected keys with values")
    return {**flat, **keys, **(others or {})}


def _find_base(base: Any, file: Path, where: str) -> Path:
    if not isinstance(base, str):
        raise UserError(f"{where}._base_: is {base!r}; expected the path of a data-set file")
    for candidate in (Path(base), file.parent / base, ROOT / base):
        if candidate.is_file():
            return candidate
    named = dataset_file(base)
    if named is None:
        there = ", ".join(sorted(entry.name for entry in (ROOT / "cfgs" / "dataset").glob("*.yaml")))
        raise UserError(
            f"{where}._base_: {base} does not exist, and cfgs/dataset/ has no such file; there are: {there}"
        )
    return named


def _build_datasets(tree: Any, where: str, datasets: Registry, data_root) -> dict:
    def build(entry: Any, name: str) -> Any:
        return with_root(datasets.config(entry, f"{where}.{name}"), data_root)

    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: is {tree!r}; expected the entries train, val, test, svm")
    built = {
        name: build(entry, name) if name in _ENTRIES and entry is not None else entry for name, entry in tree.items()
    }
    if isinstance(built.get("svm"), Mapping):
        built["svm"] = {
            name: build(entry, f"svm.{name}") if name in ("train", "test") else entry
            for name, entry in built["svm"].items()
        }
    return built


def with_root(config: Any, data_root: str | Path | None) -> Any:
    """Replace a leading `data/` in the path keys (upper case, as published) of a data-set dataclass."""
    if data_root is None:
        return config
    changed = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, str) and field.name.isupper() and Path(value).parts[:1] == ("data",):
            changed[field.name] = Path(data_root, *Path(value).parts[1:]).as_posix()
    return replace(config, **changed)


def _declared(tree: dict, models: Registry, where: str) -> set[str]:
    """Return the keys that the model declares: a key is dead only where nothing reads it."""
    model = tree.get("model")
    if not isinstance(model, Mapping) or "NAME" not in model:
        return set()
    return {f"model.{field.name}" for field in fields(models.entry(model["NAME"], f"{where}: model").config)}


def _without_dead_keys(tree: dict, declared: set[str], prefix: tuple = ()) -> tuple[dict, list[str]]:
    """Return a copy without the known dead keys of published files, and their paths."""
    kept, ignored = {}, []
    for key, value in tree.items():
        path = (*prefix, str(key))
        if ".".join(path) not in declared and any(_matches(path, dead) for dead in DEAD_KEYS):
            ignored.append(".".join(path))
        elif isinstance(value, Mapping):
            kept[key], below = _without_dead_keys(value, declared, path)
            ignored += below
        else:
            kept[key] = value
    return kept, ignored


def _matches(path: tuple[str, ...], dead: str) -> bool:
    parts = dead.split(".")
    return len(parts) == len(path) and all(part in ("*", key) for part, key in zip(parts, path, strict=True))


def _check_points(config: RunConfig, where: str) -> None:
    """Compare points with groups, and the two places that give a number of points."""
    groups = getattr(config.model, "num_groups", None)
    groups = groups[0] if isinstance(groups, list) and groups else getattr(config.model, "num_group", None)
    svm = config.dataset.svm
    entries = {"dataset.train": config.dataset.train}
    if svm is not None:
        entries.update({"dataset.svm.train": svm.train, "dataset.svm.test": svm.test})
    counts = {"npoints": config.npoints}
    for name, entry in entries.items():
        for key in ("npoints", "num_points"):
            if is_dataclass(entry) and getattr(entry, key, 0):
                counts[f"{name}.{key}"] = getattr(entry, key)
                break
    for name, count in counts.items():
        if isinstance(groups, int) and count is not None and count < groups:
            raise UserError(
                f"{where}: {name} is {count}, fewer points than the {groups} groups of the model; "
                "raise it or lower model.num_groups"
            )
    sampled = counts.get("dataset.train.npoints")
    classifies = hasattr(config.model, "cls_dim")  # it takes npoints of those that the set gives
    if not classifies and config.npoints is not None and sampled is not None and sampled != config.npoints:
        _LOG.warning("%s: npoints %d has no effect; dataset.train.npoints %d decides", where, config.npoints, sampled)


def _short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix() if file.is_absolute() and file.is_relative_to(ROOT) else str(file)
