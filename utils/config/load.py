"""From a YAML file, its bases, `--set` overrides and the registered NAMEs to a resolved `RunConfig`."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from utils import ROOT
from utils.config.merge import merge
from utils.config.schema import DatasetsConfig, RunConfig
from utils.config.yaml import parse_value, read_yaml
from utils.errors import UserError
from utils.registry import Registry, import_file

_LOG = logging.getLogger("m2ae.config")
_ENTRIES = tuple(entry.name for entry in fields(DatasetsConfig) if entry.name != "svm")
HELD_OUT = ("val", "test", "svm.test")  # entries that are the test split where they do not say
# GM3D's names of the two sets of the linear SVM.
_SVM_NAMES = {"extra_train_svm": "train", "extra_test_svm": "test"}
# Keys that an earlier version wrote into the configuration of every run.
RETIRED = ("dataset.extra_train",)


@dataclass(frozen=True)
class OldNames:
    """What other programs' files say that this one does not know (tools/published/keys.py has them).

    Args:
        dead_keys: dotted paths of keys that are left out with a line in the log; `*` is any one key.
        dataset_files: file name of a data set there -> that in cfgs/dataset/.
    """

    dead_keys: Collection[str] = ()
    dataset_files: Mapping[str, str] = field(default_factory=dict)


def load_config(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    imports: Sequence[str] = (),
    models: Registry,
    datasets: Registry,
    data_root: str | Path | None = None,
    old: OldNames | None = None,
    change_model: Callable[[Any], Any] | None = None,
) -> RunConfig:
    """Load a recipe, ours or a published file, and check it.

    Args:
        path: a file.
        overrides: "key.path=value" each, the value as YAML; over the file, before anything is checked. Keys of a
            data-set entry are set directly (`dataset.train.npoints=1024`).
        imports: Python files that register further NAMEs, besides those of the key `imports`.
        models, datasets: registers of NAMEs.
        data_root: replaces a leading `data/` in the paths of data sets.
        change_model: from the dataclass of the model to the one that is taken, such as that of a checkpoint.

    Raises:
        UserError: naming file, key and remedy.
    """
    file = Path(path)
    old = old or OldNames()
    where = _short(file) + _with(overrides)
    tree = read_recipe(file, old)
    _override(tree, overrides, file, where, datasets, old)
    tree["imports"] = _import(tree.get("imports"), imports, file, where)
    config = _build(tree, where, models, datasets, data_root, old)
    if change_model is not None:
        config.model = change_model(config.model)
    _check_points(config, where)
    return config


def saved_config(
    tree: Mapping, where: str, *, overrides: Sequence[str] = (), models: Registry, datasets: Registry
) -> RunConfig:
    """Check a resolved configuration, such as a checkpoint holds, as `load_config` checks a file.

    Its `imports` are not imported: a checkpoint runs no code.

    Args:
        tree: what `to_dict` made of a `RunConfig`; it is left as it is.
        where: where it stands, for messages.

    Raises:
        UserError: naming key and remedy.
    """
    tree = deepcopy(dict(tree))
    name = tree["model"].get("NAME") if isinstance(tree.get("model"), Mapping) else None
    if tree.get("imports") and name not in models:
        raise UserError(
            f"{where}: model {name!r} is registered by {', '.join(map(str, tree['imports']))}, and a checkpoint runs no code: "
            "give that file with --import"
        )
    where += _with(overrides)
    _override(tree, overrides, ROOT, where, datasets, OldNames())
    config = _build(tree, where, models, datasets, None, OldNames())
    _check_points(config, where)
    return config


def read_recipe(file: str | Path, old: OldNames | None = None) -> dict:
    """Read a YAML file and its bases into one mapping.

    `_base_` at the top is another recipe, or a list of them: mappings are merged key by key, everything else, lists included, is
    replaced. A data-set entry that has a `_base_`, and a mapping with another NAME, replace the one of the base whole. A base is
    looked for next to the file, from the working directory and from the repository.

    Raises:
        UserError: a file is missing or malformed, or is its own base.
    """
    return _read_recipe(Path(file), old or OldNames(), ())


def _read_recipe(file: Path, old: OldNames, below: tuple[Path, ...]) -> dict:
    if file.resolve() in below:
        raise UserError(f"{_short(file)}: is its own _base_, through {_short(below[-1])}; take one of the two away")
    tree, where = read_yaml(file), _short(file)
    bases = tree.pop("_base_", None)
    if tree.get("dataset") is not None:
        tree["dataset"] = _each_set(
            _plain_datasets(tree["dataset"], f"{where}: dataset"), _plain_entry(file, old), where
        )
    if isinstance(tree.get("imports"), list):
        tree["imports"] = [str(_find(name, file) or name) for name in tree["imports"]]
    merged: dict = {}
    for base in [] if bases is None else bases if isinstance(bases, list) else [bases]:
        found = _find(base, file) if isinstance(base, str) else None
        if found is None:
            raise UserError(f"{where}: _base_: {base!r} is no file; give the path of a recipe")
        merged = _over(merged, _read_recipe(found, old, (*below, file.resolve())))
    return _over(merged, tree)


def _over(base: Any, tree: Any) -> Any:
    """Return `tree` merged over `base`."""
    if not isinstance(base, Mapping) or not isinstance(tree, Mapping):
        return tree
    if "_base_" in tree or ("NAME" in tree and _flat_entry(base, "").get("NAME") != tree["NAME"]):
        return tree
    return {**base, **{key: _over(base.get(key), value) for key, value in tree.items()}}


def _find(name: str, file: Path) -> Path | None:
    """Find a file that another one names: next to it, from the working directory, from the repository."""
    return next((path for path in (file.parent / name, Path(name), ROOT / name) if path.is_file()), None)


def _import(named: Any, flags: Sequence[str], file: Path, where: str) -> list[str]:
    """Import the Python files of the key `imports` and of --import; returns their paths, for the configuration of the run."""
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise UserError(f"{where}: imports: is {named!r}; expected a list of Python files such as [methods/mine.py]")
    paths = [(name, _find(name, file), f"{where}: imports: {name}") for name in named or ()]
    paths += [(name, Path(name) if Path(name).is_file() else None, f"--import {name}") for name in flags]
    for _, path, place in paths:
        import_file(path, place)
    return list(dict.fromkeys(_portable(path) for _, path, _ in paths))


def _portable(path: Path) -> str:
    """Return the path of a file relative to the repository, or absolute where it is outside."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def _override(tree: dict, overrides: Sequence[str], file: Path, where: str, datasets: Registry, old: OldNames) -> None:
    """Set "key.path=value" each in a raw tree, and give its data-set entries the keys of their bases."""
    pairs = [_split(override) for override in overrides]
    changes = [pair for pair in pairs if pair[0][0] == "dataset" and pair[0][-1] in ("_base_", "NAME")]
    for keys, value in changes:  # which set it is, before its keys are set
        _change_set(tree, keys, value, file, where, datasets, old)
    if tree.get("dataset") is not None:
        tree["dataset"] = _each_set(tree["dataset"], _flat_entry, where)
    for keys, value in pairs:
        if (keys, value) not in changes:
            _set(tree, [key for key in keys if not (key == "others" and keys[0] == "dataset")], value)


def _change_set(
    tree: dict, keys: list[str], value: Any, file: Path, where: str, datasets: Registry, old: OldNames
) -> None:
    """Make a data-set entry one of another base or NAME.

    Of the entry's own keys those stay that say how clouds are drawn, which are in lower case, where the new set has them.
    """
    place = ".".join(keys[:-1])
    entry = tree
    for key in keys[:-1]:
        entry = (entry.get(key) if isinstance(entry, Mapping) else None) or {}
    changed = _plain_entry(file, old)({keys[-1]: value}, f"{where}: {place}")
    name = _flat_entry(changed, place).get("NAME")
    own = {key: kept for key, kept in entry.items() if key not in ("_base_", "NAME")}
    if name != _flat_entry(entry, place).get("NAME"):
        known = {known.name for known in fields(datasets.entry(name, f"{where}: {place}").config)}
        if "num_points" not in known and "num_points" in own:  # what published sets of the linear SVM call npoints
            own["npoints"] = own["num_points"]
        own = {key: kept for key, kept in own.items() if key in known and not key.isupper()}
    _set(tree, keys[:-1], {**own, **changed})


def _build(
    tree: dict, where: str, models: Registry, datasets: Registry, data_root: str | Path | None, old: OldNames
) -> RunConfig:
    """Turn a raw tree into dataclasses, strictly."""
    if "model" not in tree:
        raise UserError(f"{where}: has no model; add model.NAME, one of {', '.join(models.names())}")
    tree, ignored = _without_dead_keys(tree, (*RETIRED, *old.dead_keys), _declared(tree, models, where))
    tree["model"] = models.config(tree["model"], f"{where}: model")
    tree["dataset"] = _build_datasets(tree.get("dataset", {}), f"{where}: dataset", datasets, data_root)
    if hasattr(tree["model"], "published_augmentation"):
        tree.setdefault("augmentation", tree["model"].published_augmentation)
    config = merge(RunConfig, tree, where)
    config.ignored = ignored
    if ignored:
        _LOG.warning("%s: keys without effect were left out: %s", where, ", ".join(ignored))
    return config


def _split(override: str) -> tuple[list[str], Any]:
    """Split "a.b=v" into (["a", "b"], parsed v)."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected key.path=value, for example --set optimizer.kwargs.lr=1e-3")
    return keys, parse_value(text, f"--set {_cut(override)}")


def _with(overrides: Sequence[str]) -> str:
    return f" (with --set {' '.join(map(_cut, overrides))})" if overrides else ""


def _cut(override: str) -> str:
    return override if len(override) <= 80 else override[:77] + "..."


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


def _plain_datasets(dataset: Any, where: str) -> dict:
    """Return data-set entries with one name for the SVM's two sets."""
    if not isinstance(dataset, Mapping):
        raise UserError(f"{where}: is {dataset!r}; expected the entries train, val, test, svm")
    plain = dict(dataset)
    if plain.get("svm") is not None and not isinstance(plain["svm"], Mapping):
        raise UserError(f"{where}.svm: is {plain['svm']!r}; expected the entries train and test")
    for name in [name for name in _SVM_NAMES if name in plain]:
        plain["svm"] = {**(plain.get("svm") or {}), _SVM_NAMES[name]: plain.pop(name)}
    return plain


def _each_set(dataset: Mapping, change: Callable[[Any, str], dict], where: str) -> dict:
    """Return data-set entries, each changed by `change(entry, where)`."""
    changed = dict(dataset)
    for name in _ENTRIES:
        if changed.get(name) is not None:
            changed[name] = change(changed[name], f"{where}: dataset.{name}")
    if isinstance(changed.get("svm"), Mapping):
        changed["svm"] = {
            name: change(entry, f"{where}: dataset.svm.{name}") if name in ("train", "test") else entry
            for name, entry in changed["svm"].items()
        }
    return changed


def _plain_entry(file: Path, old: OldNames) -> Callable[[Any, str], dict]:
    """Return what turns `{_base_, others}` of a file into one mapping of keys, in which the base is found."""

    def plain(entry: Any, where: str) -> dict:
        if not isinstance(entry, Mapping):
            raise UserError(f"{where}: is {entry!r}; expected _base_ and others, or NAME and its keys")
        keys = dict(entry)
        others = keys.pop("others", None)
        if others is not None and not isinstance(others, Mapping):
            raise UserError(f"{where}.others: is {others!r}; expected keys with values")
        if keys.get("_base_") is None:
            keys.pop("_base_", None)
        elif not isinstance(keys["_base_"], Mapping):  # A mapping is what the published programs leave in memory.
            keys["_base_"] = str(_find_set(keys["_base_"], file, where, old))
        return {**keys, **(others or {})}

    return plain


def _flat_entry(entry: Any, where: str) -> dict:
    """Replace the base of an entry, a file or a mapping, by its keys."""
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: is {entry!r}; expected _base_ and others, or NAME and its keys")
    base = entry.get("_base_", {})
    flat = base if isinstance(base, Mapping) else read_yaml(base)
    return {**flat, **{key: value for key, value in entry.items() if key != "_base_"}}


def _find_set(base: Any, file: Path, where: str, old: OldNames) -> Path:
    """Find the file of a data set: from the working directory, the file, the repository, else by its name in cfgs/dataset/."""
    if not isinstance(base, str):
        raise UserError(f"{where}._base_: is {base!r}; expected the path of a data-set file")
    folder, name = ROOT / "cfgs" / "dataset", Path(base.replace("\\", "/")).name
    named = folder / old.dataset_files.get(name, name)
    # As published programs do, first from the working directory.
    found = next((path for path in (Path(base), file.parent / base, ROOT / base, named) if path.is_file()), None)
    if found is None:
        there = ", ".join(sorted(entry.name for entry in folder.glob("*.yaml")))
        raise UserError(
            f"{where}._base_: {base} does not exist, and cfgs/dataset/ has no such file; there are: {there}"
        )
    return found


def _build_datasets(tree: Any, where: str, datasets: Registry, data_root: str | Path | None) -> dict:
    def build(entry: Any, name: str) -> Any:
        if name in HELD_OUT and isinstance(entry, Mapping) and entry.get("NAME") in datasets.names():
            keys = {field.name for field in fields(datasets.entry(entry["NAME"]).config)}
            entry = {**({"subset": "test"} if "subset" in keys else {}), **entry}
        if isinstance(entry, Mapping) and isinstance(entry.get("sets"), list):  # The parts of a mixture.
            entry = {**entry, "sets": [part_of(part, f"{name}.sets[{i}]") for i, part in enumerate(entry["sets"])]}
        return with_root(datasets.config(entry, f"{where}.{name}"), data_root)

    def part_of(part: Any, name: str) -> dict:
        keys = asdict(build(part, name))
        if "subset" not in part:
            keys.pop("subset", None)  # that of the mixture holds, not a default
        return keys

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
        _warn_of_one_split(built["svm"], f"{where}.svm")
    _warn_of_one_split(built, where)
    return built


def _warn_of_one_split(entries: Mapping, where: str) -> None:
    """Say where a set that is to be held out is the training set: same NAME, same paths, same split."""
    train = _split_of(entries.get("train"))
    for name in ("val", "test"):
        if train is not None and _split_of(entries.get(name)) == train:
            _LOG.warning("%s: %s is the training set itself (%s); set its subset", where, name, train[-1])


def _split_of(entry: Any) -> tuple | None:
    if not is_dataclass(entry) or not getattr(entry, "subset", ""):
        return None
    apart = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name.isupper()}
    apart |= {
        key: getattr(entry, key)
        for key in ("way", "shot", "fold", "corruption", "severity", "seed")
        if hasattr(entry, key)
    }
    return (repr(sorted(apart.items())), entry.subset)


def with_root(config: Any, data_root: str | Path | None) -> Any:
    """Replace a leading `data/` in the path keys (upper case, as published) of a data-set dataclass."""
    if data_root is None:
        return config
    changed = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, str) and entry.name.isupper() and Path(value).parts[:1] == ("data",):
            changed[entry.name] = Path(data_root, *Path(value).parts[1:]).as_posix()
    return replace(config, **changed)


def _declared(tree: dict, models: Registry, where: str) -> set[str]:
    """Return the keys that the model declares: a key is dead only where nothing reads it."""
    model = tree.get("model")
    if not isinstance(model, Mapping) or "NAME" not in model:
        return set()
    return {f"model.{entry.name}" for entry in fields(models.entry(model["NAME"], f"{where}: model").config)}


def _without_dead_keys(
    tree: dict, dead_keys: Collection[str], declared: set[str], prefix: tuple = ()
) -> tuple[dict, list[str]]:
    """Return a copy without the known dead keys, and the paths of those that had a value."""
    kept, ignored = {}, []
    for key, value in tree.items():
        path = (*prefix, str(key))
        if ".".join(path) not in declared and any(_matches(path, dead) for dead in dead_keys):
            ignored += [] if value is None else [".".join(path)]
        elif isinstance(value, Mapping):
            kept[key], below = _without_dead_keys(value, dead_keys, declared, path)
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
