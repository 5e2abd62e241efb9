"""Published configuration paths: task, data set and method of each, and where its recipe is here."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from utils import ROOT
from utils.errors import UserError, suggest

TASKS = ("pre-training", "linear-svm", "fine-tuning", "few-shot", "segmentation", "detection", "ablation")
NO_RECIPES = ("base", "dataset")  # folders of cfgs/ whose files are parts of recipes
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
    "cfgs/pretrain/base.yaml": ("pre-training", None, "pcp-mae"),
    "cfgs/linear/finetune_modelnet.yaml": ("fine-tuning", "modelnet40-linear", "pcp-mae"),
    "cfgs/linear/finetune_modelnet_8k.yaml": ("fine-tuning", "modelnet40_8k-linear", "pcp-mae"),
    "cfgs/linear/finetune_scan_hardest.yaml": ("fine-tuning", "scan_pb-linear", "pcp-mae"),
    "cfgs/linear/finetune_scan_objbg.yaml": ("fine-tuning", "scan_obj-bg-linear", "pcp-mae"),
    "cfgs/linear/finetune_scan_objonly.yaml": ("fine-tuning", "scan_obj-linear", "pcp-mae"),
    "cfgs/linear/fewshot.yaml": ("few-shot", "modelnet40-linear", "pcp-mae"),
    "cfgs/mlp3/finetune_modelnet.yaml": ("fine-tuning", "modelnet40-mlp3", "pcp-mae"),
    "cfgs/mlp3/finetune_modelnet_8k.yaml": ("fine-tuning", "modelnet40_8k-mlp3", "pcp-mae"),
    "cfgs/mlp3/finetune_scan_hardest.yaml": ("fine-tuning", "scan_pb-mlp3", "pcp-mae"),
    "cfgs/mlp3/finetune_scan_objbg.yaml": ("fine-tuning", "scan_obj-bg-mlp3", "pcp-mae"),
    "cfgs/mlp3/finetune_scan_objonly.yaml": ("fine-tuning", "scan_obj-mlp3", "pcp-mae"),
    "cfgs/mlp3/fewshot.yaml": ("few-shot", "modelnet40-mlp3", "pcp-mae"),
    # GeoMask3D keeps one folder a base method.
    "Point-MAE_SA3D/cfgs/config.yaml": ("pre-training", None, "gm3d"),
    "Point-MAE_SA3D/cfgs/finetune_modelnet.yaml": ("fine-tuning", "modelnet40", "gm3d"),
    "Point-MAE_SA3D/cfgs/config_finetune_scan_hardest.yaml": ("fine-tuning", "scan_pb", "gm3d"),
    "Point-MAE_SA3D/cfgs/config_finetune_scan_objonly.yaml": ("fine-tuning", "scan_obj", "gm3d"),
    "Point-MAE_SA3D/cfgs/config_finetune_scan_objbg.yaml": ("fine-tuning", "scan_obj-bg", "gm3d"),
    "Point-MAE_SA3D/cfgs/fewshot.yaml": ("few-shot", "modelnet40", "gm3d"),
    "Point-M2AE_SA3D/cfgs/config_Point_M2AE.yaml": ("pre-training", None, "gm3d-point-m2ae"),
    "Point-M2AE_SA3D/cfgs/finetune_modelnet_PointM2AE.yaml": ("fine-tuning", "modelnet40", "gm3d-point-m2ae"),
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_hardest_PointM2AE.yaml": ("fine-tuning", "scan_pb", "gm3d-point-m2ae"),
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_objonly_PointM2AE.yaml": ("fine-tuning", "scan_obj", "gm3d-point-m2ae"),
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_objbg_PointM2AE.yaml": ("fine-tuning", "scan_obj-bg", "gm3d-point-m2ae"),
    "Point-M2AE_SA3D/cfgs/fewshot-Point-M2AE.yaml": ("few-shot", "modelnet40", "gm3d-point-m2ae"),
    "configs/Point-JEPA/pretraining/shapenet.yaml": ("pre-training", None, "point-jepa"),
    "configs/Point-JEPA/classification/modelnet40.yaml": ("fine-tuning", "modelnet40", "point-jepa"),
    "configs/Point-JEPA/classification/scanobjectnn.yaml": ("fine-tuning", "scan_pb", "point-jepa"),
    # Two parts that the published commands put over scanobjectnn.yaml.
    "configs/Point-JEPA/classification/_scanobjectnn_obj_bg.yaml": ("fine-tuning", "scan_obj-bg", "point-jepa"),
    "configs/Point-JEPA/classification/_scanobjectnn_obj_only.yaml": ("fine-tuning", "scan_obj", "point-jepa"),
    "configs/Point-JEPA/classification/modelnet_fewshot.yaml": ("few-shot", "modelnet40", "point-jepa"),
    "configs/Point-JEPA/segmentation/shapenetpart.yaml": ("segmentation", "shapenet_part", "point-jepa"),
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
    given = Path(path)
    for candidate in (given, ROOT / given):
        if candidate.is_file():
            return _describe(candidate)
    published = lookup(given, method)
    if published is None:
        raise UserError(f"{path}: configuration does not exist; {_hint(given)}")
    if not (ROOT / published.path).is_file():
        others = ", ".join(available(published.task)) or "none"
        raise UserError(
            f"{path}: resolves to {published.path.as_posix()}, which this version does not have yet; "
            f"available for {published.task}: {others}"
        )
    return Recipe(ROOT / published.path, published.method, published.task, published.dataset)


def lookup(path: str | Path, method: str | None = None) -> Recipe | None:
    """Return the recipe of a published path, relative to the repository, whether or not it is there; else None."""
    name = _relative(Path(path))
    entry = OWN_PATHS.get(name) or SHARED_PATHS.get(name)
    if entry is None:
        return None
    task, dataset, owner = entry
    owner = owner if name in OWN_PATHS else method or owner
    return Recipe(recipe_path(task, owner, dataset), owner, task, dataset)


def recipe_path(task: str, method: str, dataset: str | None) -> Path:
    """Return where a recipe stands, relative to the repository."""
    if task == "pre-training":
        return Path("cfgs", task, f"{method}.yaml")
    return Path("cfgs", task, method, f"{dataset}.yaml")


def published_paths() -> list[str]:
    """Return every published path that resolves."""
    return [*OWN_PATHS, *SHARED_PATHS]


def available(task: str | None = None) -> list[str]:
    """List the recipes of this version, of one task or all, relative to the repository."""
    folder = ROOT / "cfgs"
    found = [file.relative_to(ROOT) for file in sorted(folder.rglob("*.yaml"))]
    return [file.as_posix() for file in found if file.parts[1] not in NO_RECIPES and task in (None, file.parts[1])]


def below_cfgs(path: str | Path) -> Path | None:
    """Return a path relative to the repository's cfgs/ folder, None for a file elsewhere."""
    path = Path(path).resolve()
    folder = ROOT / "cfgs"
    return path.relative_to(folder) if path.is_relative_to(folder) else None


def _describe(file: Path) -> Recipe:
    """Read method, task and data set off the place of a file: cfgs/<task>/<method>.yaml, cfgs/<task>/<method>/<data set>.yaml."""
    below = below_cfgs(file)
    parts = below.with_suffix("").parts if below is not None else ()
    if len(parts) not in (2, 3) or parts[0] in NO_RECIPES:
        return Recipe(file)
    task = parts[0] if parts[0] in TASKS else None
    return Recipe(file, method=parts[1], task=task, dataset=parts[2] if len(parts) == 3 else None)


def _relative(path: Path) -> str:
    """Bring a path to the form of the table: relative, forward slashes, no leading dot or slash."""
    if path.is_absolute() and path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return PurePosixPath(*(part for part in path.as_posix().split("/") if part not in (".", ""))).as_posix()


def _hint(given: Path) -> str:
    """Say which recipes come close, and what exists."""
    names = available()
    text = suggest(_relative(given), {*names, *published_paths()}, what="recipes")
    same = [name for name in names if Path(name).stem == given.stem][:4]
    if text.startswith("did you mean"):
        return f"{text} Recipes are in cfgs/<task>/, for example {names[0] if names else 'none'}"
    if same:
        return f"did you mean {' or '.join(same)}?"
    first = {name.split("/")[1]: name for name in reversed(names)}  # of each task
    return f"recipes: {', '.join(reversed(first.values()))} ..., {len(names)} in all" if names else "recipes: none"
