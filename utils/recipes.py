"""The one table of published configuration paths: task, data set and method of each, and where its recipe stands here.

Also the one list of keys in published files that nothing reads.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils.errors import UserError, suggest

ROOT = Path(__file__).resolve().parent.parent

METHODS = ("point-m2ae", "point-mae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae")
TASKS = ("pre-training", "linear-svm", "fine-tuning", "few-shot", "segmentation", "ablation")
DEFAULT_METHOD = "point-m2ae"

# Published path -> (task, data set, method). Several programs share these names: task and data set are sure, the method
# is what --method or the checkpoint says, and the last column without either.
SHARED_PATHS = {
    "cfgs/linear-svm/modelnet40.yaml": ("linear-svm", "modelnet40", DEFAULT_METHOD),
    "cfgs/linear-svm/scan_obj-bg.yaml": ("linear-svm", "scan_obj-bg", DEFAULT_METHOD),
    "cfgs/fine-tuning/modelnet40.yaml": ("fine-tuning", "modelnet40", DEFAULT_METHOD),
    "cfgs/fine-tuning/scan_pb.yaml": ("fine-tuning", "scan_pb", DEFAULT_METHOD),
    "cfgs/fine-tuning/scan_obj.yaml": ("fine-tuning", "scan_obj", DEFAULT_METHOD),
    "cfgs/fine-tuning/scan_obj-bg.yaml": ("fine-tuning", "scan_obj-bg", DEFAULT_METHOD),
    "cfgs/fewshot.yaml": ("few-shot", "modelnet40", DEFAULT_METHOD),
    "cfgs/finetune_modelnet.yaml": ("fine-tuning", "modelnet40", DEFAULT_METHOD),
    # 8,192 points: only the single-scale methods were published with it.
    "cfgs/finetune_modelnet_8k.yaml": ("fine-tuning", "modelnet40_8k", "point-mae"),
    "cfgs/finetune_scan_hardest.yaml": ("fine-tuning", "scan_pb", DEFAULT_METHOD),
    "cfgs/finetune_scan_objbg.yaml": ("fine-tuning", "scan_obj-bg", DEFAULT_METHOD),
    "cfgs/finetune_scan_objonly.yaml": ("fine-tuning", "scan_obj", DEFAULT_METHOD),
    # What segmentation/main.py, whose flags name no file, runs.
    "cfgs/segmentation/shapenet_part.yaml": ("segmentation", "shapenet_part", DEFAULT_METHOD),
    "cfgs/pretrain.yaml": ("pre-training", None, "inter-mae"),
}
# Published paths that name their method; a checkpoint or --method does not change it.
OWN_PATHS = {
    "cfgs/pre-training/point-m2ae.yaml": ("pre-training", None, "point-m2ae"),
    "cfgs/pre-training/i2p-mae.yaml": ("pre-training", None, "i2p-mae"),
}
# GM3D keeps one folder a base method, with the names of that method's files in it.
GM3D_FOLDERS = {"Point-MAE_SA3D": "gm3d", "Point-M2AE_SA3D": "gm3d-point-m2ae"}
# Names of published data-set files whose set has another file name in cfgs/dataset/.
DATASET_FILES = {
    "ScanObjectNN_hardest.yaml": "Scan_PB.yaml",
    "ScanObjectNN_objectbg.yaml": "Scan_OBJ-BG.yaml",
    "ScanObjectNN_objectonly.yaml": "Scan_OBJ.yaml",
}
# Keys of published files that no program reads, the published ones included: dotted path -> why. `*` is any one key.
# A key is dead only where nothing here declares it.
DEAD_KEYS = {
    "consider_metric": "left over from an earlier code base",
    "scheduler.kwargs.t_mul": "restarts of the cosine; there is one cycle",
    "scheduler.kwargs.decay_rate": "decay over restarts; there is one cycle",
    "scheduler.kwargs.cycle_mul": "restarts of the cosine; there is one cycle",
    "scheduler.kwargs.cycle_decay": "decay over restarts; there is one cycle",
    "scheduler.kwargs.cycle_limit": "restarts of the cosine; there is one cycle",
    "optimizer.part": "left over from an earlier code base",
    "model.type": "the published models have one type",
    "dataset.*.class_choice": "never read by the published readers",
}


@dataclass(frozen=True)
class Recipe:
    """A configuration file, and what its place says about it; None where it says nothing."""

    path: Path
    method: str | None = None
    task: str | None = None
    dataset: str | None = None


def find_recipe(path: str | Path, method: str | None = None) -> Recipe:
    """Find the configuration that a path means: the file itself if there is one, else the recipe of a published path.

    Args:
        path: relative to the working directory or the repository.
        method: what `--method` says, or the checkpoint. It chooses among the methods that share a published path; a
            file that exists is taken as it is, and its own method is in the result for the caller to compare.

    Raises:
        UserError: no such file and no such published path (with the close ones), or a recipe that this version lacks.
    """
    if method is not None and method not in METHODS:
        raise UserError(f"--method {method}: is unknown; {suggest(method, METHODS)}")
    given = Path(path)
    for candidate in (given, ROOT / given):
        if candidate.is_file():
            return _describe(candidate)
    published = lookup(given, method)
    if published is None:
        raise UserError(f"{path}: configuration does not exist; {_hint(given)}")
    if not (ROOT / published.path).is_file():
        beside = ", ".join(available(published.task)) or "none"
        raise UserError(
            f"{path}: resolves to {published.path.as_posix()}, which this version does not have yet; "
            f"available for {published.task}: {beside}"
        )
    return Recipe(ROOT / published.path, published.method, published.task, published.dataset)


def lookup(path: str | Path, method: str | None = None) -> Recipe | None:
    """Return the recipe of a published path, relative to the repository, whether or not it is there; else None."""
    name = _relative(Path(path))
    folder, _, rest = name.partition("/")
    if folder in GM3D_FOLDERS:
        owner, name = GM3D_FOLDERS[folder], rest
        entry = SHARED_PATHS.get(name) or OWN_PATHS.get(name)
    elif name in OWN_PATHS:
        entry = OWN_PATHS[name]
        owner = entry[2]
    else:
        entry = SHARED_PATHS.get(name)
        owner = method or (entry[2] if entry else None)
    if entry is None:
        return None
    task, dataset, _ = entry
    return Recipe(recipe_path(task, owner, dataset), owner, task, dataset)


def recipe_path(task: str, method: str, dataset: str | None) -> Path:
    """Return where a recipe stands, relative to the repository."""
    if task == "pre-training":
        return Path("cfgs", task, f"{method}.yaml")
    return Path("cfgs", task, method, f"{dataset}.yaml")


def published_paths() -> list[str]:
    """Return every published path that resolves, GM3D's included."""
    shared = [*OWN_PATHS, *SHARED_PATHS]
    gm3d = [f"{folder}/{name}" for folder in GM3D_FOLDERS for name in shared]
    return shared + gm3d


def available(task: str | None = None) -> list[str]:
    """List the recipes of this version, of one task or all, relative to the repository."""
    folder = ROOT / "cfgs"
    found = [file.relative_to(ROOT) for file in sorted(folder.rglob("*.yaml"))]
    return [file.as_posix() for file in found if file.parts[1] != "dataset" and task in (None, file.parts[1])]


def dataset_file(name: str | Path) -> Path | None:
    """Return the file in cfgs/dataset/ that a published `_base_` path means by its file name; None if there is none."""
    file = PurePosixPath(str(name).replace("\\", "/")).name
    path = ROOT / "cfgs" / "dataset" / DATASET_FILES.get(file, file)
    return path if path.is_file() else None


def below_cfgs(path: str | Path) -> Path | None:
    """Return a path relative to the repository's cfgs/ folder, None for a file elsewhere."""
    path = Path(path).resolve()
    folder = ROOT / "cfgs"
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def _describe(file: Path) -> Recipe:
    """Read method, task and data set off the place of a file below cfgs/."""
    below = below_cfgs(file)
    parts = below.with_suffix("").parts if below is not None else ()
    if len(parts) == 2 and parts[1] in METHODS:  # cfgs/pre-training/<method>.yaml, cfgs/debug/<method>.yaml
        return Recipe(file, method=parts[1], task=parts[0] if parts[0] in TASKS else None)
    if len(parts) == 3 and parts[1] in METHODS:
        return Recipe(file, method=parts[1], task=parts[0] if parts[0] in TASKS else None, dataset=parts[2])
    return Recipe(file)


def _relative(path: Path) -> str:
    """Bring a path to the form of the table: relative, forward slashes, no leading dot."""
    if path.is_absolute() and path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return PurePosixPath(*(part for part in path.as_posix().split("/") if part != ".")).as_posix()


def _hint(given: Path) -> str:
    """Say which recipes come close, and what exists."""
    names = available()
    text = suggest(_relative(given), {*names, *published_paths()}, what="recipes")
    same = [name for name in names if Path(name).stem == given.stem][:4]
    if text.startswith("did you mean"):
        return f"{text} Recipes stand in cfgs/<task>/, for example {names[0] if names else 'none'}"
    if same:
        return f"did you mean {' or '.join(same)}?"
    first = {name.split("/")[1]: name for name in reversed(names)}  # of each task
    return f"recipes: {', '.join(reversed(first.values()))} ..., {len(names)} in all" if names else "recipes: none"
