"""Which layout the files of a folder have, wherever it lies, and the keys that its reader needs for it."""

import json
from dataclasses import replace
from pathlib import Path

from datasets.formats.arrays import load_npy
from datasets.formats.cloud_files import read_cloud
from datasets.formats.hdf5 import inspect
from datasets.preparing.layouts import LAYOUTS, Layout
from utils.errors import UserError, printable

# Names in a folder that tell its layout, the rarest first; a pattern with a star is a glob.
LANDMARKS = (
    ("ShapeNetPart", ("synsetoffset2category.txt",)),
    ("ScanNet", ("scannet_train_detection_data",)),
    ("ShapeNet", ("ShapeNet-55", "shapenet_pc")),
    ("ShapeNetRender", ("ShapeNet", "ShapeNetRendering")),
    ("ModelNet", ("modelnet*_shape_names.txt",)),
    ("ModelNet40_SVM", ("ply_data_train*.h5",)),
    ("ModelNet40-C", ("label.npy", "data_*_1.npy")),
    ("ModelNetFewShot", ("*way*shot",)),
    ("Scan_OBJ-BG", ("main_split/training_objectdataset.h5",)),
    ("Scan_OBJ", ("main_split_nobg/training_objectdataset.h5",)),
    ("Scan_PB", ("main_split/training_objectdataset_augmentedrot_scale75.h5",)),
)
# Points of a cloud that the readers expect; with fewer they must be told.
PUBLISHED_POINTS = {
    "ShapeNet": 8192,
    "ShapeNetRender": 2048,
    "ModelNet": 8192,
    "ModelNet40_SVM": 1024,
    "ModelNet10": 1024,
}


def recognise(folder: Path) -> list[Layout]:
    """Return the layouts of the sets in a folder, as if it were the root of each: one, or the variants of ScanObjectNN.

    A folder without the files of a published layout is own data, `Folder`.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{printable(folder)}: {problem}; give a folder of clouds, or the name of a data set")
    names = [name for name, marks in LANDMARKS if all(any(folder.glob(mark)) for mark in marks)]
    names = [name for name in names if name.startswith("Scan_")] or names[:1] or ["Folder"]
    known = {layout.name: layout for layout in LAYOUTS}
    return [_at(known[name], folder) for name in names]


def stored_points(layout: Layout, folder: Path) -> int | None:
    """Return how many points the first cloud of a published layout has; None where that is not known, or the file is damaged.

    Only of layouts whose readers must be told.
    """
    first = {"ShapeNet": "shapenet_pc/*.npy", "ShapeNetRender": "ShapeNet/*/*.ply", "ModelNet": "*/*_*.txt"}
    hdf5 = ("ModelNet40_SVM", "ModelNet10")
    path = next(
        iter(folder.glob("ply_data_train*.h5" if layout.name in hdf5 else first.get(layout.name, "*.none"))), None
    )
    if path is None:
        return None
    try:
        if layout.name == "ShapeNet":
            return load_npy(path, mapped=True).shape[0]
        return inspect(path).points if layout.name in hdf5 else len(read_cloud(path))
    except UserError:
        return None


def fitting(layout: Layout, folder: Path) -> dict[str, int]:
    """Return the keys with which the reader of a published layout takes clouds of as many points as there are."""
    published = PUBLISHED_POINTS.get(layout.name)
    points = stored_points(layout, folder) if published else None
    return {} if points is None or points >= published else {"N_POINTS": points}


def _at(layout: Layout, folder: Path) -> Layout:
    """Return a layout whose root is the data root itself, and whose keys name this folder."""
    ten = (
        {"NUM_CATEGORY": 10} if layout.name == "ModelNet" and (folder / "modelnet10_shape_names.txt").is_file() else {}
    )
    return replace(layout, root="", config={**layout.config, **_paths(layout, folder), **ten})


def _paths(layout: Layout, folder: Path) -> dict[str, str]:
    place = folder.as_posix()
    if layout.name == "ShapeNet":
        return {"DATA_PATH": f"{place}/ShapeNet-55", "PC_PATH": f"{place}/shapenet_pc"}
    if layout.name == "ScanNet":
        return {"ROOT": f"{place}/scannet_train_detection_data", "META": f"{place}/meta_data"}
    if layout.name.startswith("Scan_"):
        return {"ROOT": f"{place}/{layout.config['ROOT'].rpartition('/')[2]}"}
    key = {"ShapeNetPart": "ROOT", "ModelNet40_SVM": "DATA_DIR"}.get(layout.name, "DATA_PATH")
    return {key: place}


def converted_from(folder: Path) -> str:
    """Return the axis that pointed up in the files that a set was converted from; y where nothing says so."""
    try:
        return str(json.loads((folder / ".convert.json").read_text())["settings"]["up"])
    except (OSError, ValueError, KeyError, TypeError):
        return "y"
