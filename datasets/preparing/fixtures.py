"""Tiny sets in the published layouts, made from the built-in one, for tests and trials: no number that they give means anything.

Legend: n clouds, P points of a cloud.
"""

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets import scannet
from datasets.clouds import SUBSETS, CloudSet
from datasets.few_shot import TEST_CLOUDS, write_folds
from datasets.modelnet40_c import CORRUPTIONS, SEVERITIES, file_of
from datasets.pictures.rendering import orbit, render_clouds
from datasets.preparing.check import FOLDS, SETTINGS
from datasets.preparing.layouts import Layout
from datasets.preparing.recognise import fitting
from datasets.preparing.render import write_pictures
from datasets.preparing.targets import encode
from datasets.scanobjectnn import CLASSES, FILES
from datasets.synthetic import (
    CATEGORIES,
    PART_IDS,
    SyntheticConfig,
    SyntheticScenesConfig,
    read_scenes,
    read_synthetic,
)
from extensions import fps
from utils import ROOT
from utils.config.load import read_recipe
from utils.errors import UserError
from utils.files import write_atomic

DAT_POINTS = 8192
FEW_SHOT_POINTS = 1024  # published folds have more; published recipes draw this many of them
# Published category and folder of ShapeNetPart, its number of parts, and the built-in category that stands in for it.
PARTS = [
    ("Airplane", "02691156", 4, "airplane"), ("Bag", "02773838", 2, "vase"), ("Cap", "02954340", 2, "bathtub"),
    ("Car", "02958343", 4, "car"), ("Chair", "03001627", 4, "chair"), ("Earphone", "03261776", 3, "stool"),
    ("Guitar", "03467517", 3, "guitar"), ("Knife", "03624134", 2, "knife"), ("Lamp", "03636649", 4, "lamp"),
    ("Laptop", "03642806", 2, "monitor"), ("Motorbike", "03790512", 6, "bed"), ("Mug", "03797390", 2, "mug"),
    ("Pistol", "03948459", 3, "toilet"), ("Rocket", "04099429", 3, "rocket"), ("Skateboard", "04225987", 3, "bench"),
    ("Table", "04379243", 3, "table"),
]  # fmt: skip

# Recipe and flags with which each is read.
_WITHOUT_SVM = " --set dataset.svm=null"
_SCAN = "cfgs/fine-tuning/point-m2ae/scan_pb.yaml --scratch_model"
USES = {
    "ShapeNet": "cfgs/pre-training/point-m2ae.yaml" + _WITHOUT_SVM,
    "ShapeNetRender": "cfgs/pre-training/inter-mae.yaml" + _WITHOUT_SVM,
    "ModelNet": "cfgs/fine-tuning/point-m2ae/modelnet40.yaml --scratch_model",
    "ModelNet40_SVM": "cfgs/linear-svm/point-m2ae/modelnet40.yaml --test_svm modelnet40 --ckpts PRE_TRAINED.pth",
    "ModelNet10": "cfgs/fine-tuning/point-m2ae/modelnet10-tiny.yaml --scratch_model",
    "Scan_OBJ-BG": _SCAN,
    "Scan_OBJ": _SCAN,
    "Scan_PB": _SCAN,
    "ModelNetFewShot": "cfgs/few-shot/point-m2ae/debug.yaml --finetune_model --way 5 --shot 10 --fold 0",
    "ShapeNetPart": "cfgs/segmentation/point-m2ae/shapenet_part.yaml",
    "ScanNet": "cfgs/detection/3detr-m/scannet.yaml --scratch_model",
    "ModelNet40-C": "cfgs/fine-tuning/point-m2ae/modelnet40.yaml --test --ckpts OF_THE_ModelNet_FIXTURE.pth --corruptions {folder}",
}


@dataclass(frozen=True)
class Size:
    """How large a fixture is; a test split has half of the training clouds."""

    clouds: int = 40  # of the training split
    points: int = 0  # stored points of a cloud; 0 = as published, FEW_SHOT_POINTS for few-shot folds

    def __post_init__(self):
        if self.clouds < 2 or self.points < 0:
            raise UserError(
                f"fixtures: --clouds {self.clouds} --points {self.points}: need at least 2 clouds and 1 point"
            )

    def of(self, subset: str) -> int:
        """Return how many clouds a subset has."""
        return self.clouds if subset == "train" else max(1, self.clouds // 2)


def write_fixture(layout: Layout, out: Path, size: Size, *, dat: bool = False) -> Path:
    """Write a set below `out` as it would lie below `data/`, under another name first; returns its folder.

    Args:
        dat: for ModelNet, the published caches next to the text files as well.

    Raises:
        UserError: files are there already, or this data set has no layout of its own.
    """
    if layout.name not in _WRITERS:
        raise UserError(
            f"fixtures: {layout.name} has no published layout; choose one of ScanObjectNN, {', '.join(_WRITERS)}"
        )
    folder = layout.folder(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: holds files already; nothing is overwritten. Give another --out, or remove that folder"
        )
    work = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        _WRITERS[layout.name](work, size)
        if dat and layout.name == "ModelNet":
            _write_dat(work)
        if folder.is_dir():
            folder.rmdir()
        os.replace(work, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); give another --out or free space"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def use_of(layout: Layout, out: Path, folder: Path, size: Size) -> str:
    """Return a command that reads a fixture."""
    command = USES[layout.name].format(folder=shlex.quote(folder.as_posix()))
    recipe = command.split()[0]
    batch = read_recipe(ROOT / recipe).get("total_bs", 128)
    sets = [f"total_bs={size.clouds}"] if batch > size.clouds and layout.name != "ModelNetFewShot" else []
    points = fitting(layout, folder).get("N_POINTS")
    if points is not None:
        entries = read_recipe(ROOT / recipe).get("dataset", {})
        names = [name for name in ("train", "val", "test") if entries.get(name)]
        sets += [f"dataset.{name}.N_POINTS={points}" for name in names if layout.name != "ModelNet40_SVM"]
    flags = "".join(f" --set {each}" for each in sets)
    return f"python main.py --config {command} --exp_name try --data_root {shlex.quote(out.as_posix())}{flags}"


def _clouds(subset: str, count: int, points: int, categories: list[str] | None = None) -> CloudSet:
    """Draw `count` clouds of as many categories as fit."""
    categories = (categories or list(CATEGORIES))[:count]
    return read_synthetic(SyntheticConfig(subset=subset, clouds=count, N_POINTS=points, categories=categories))


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_shapenet(folder: Path, size: Size) -> None:
    (folder / "shapenet_pc").mkdir()
    for subset in SUBSETS:
        clouds = _clouds(subset, size.of(subset), size.points or 8192)
        names = [f"{label + 2691156:08d}-{subset}{row:05d}.npy" for row, label in enumerate(clouds.labels)]
        for name, points in zip(names, clouds.points, strict=True):
            np.save(folder / "shapenet_pc" / name, points)
        _lines(folder / "ShapeNet-55" / f"{subset}.txt", names)


def _write_shapenet_render(folder: Path, size: Size) -> None:
    clouds = _clouds("train", size.clouds, size.points or 2048)
    cameras = orbit(3, up_axis=clouds.up_axis)
    drawn = render_clouds(torch.from_numpy(np.array(clouds.points)), cameras, 137, kind="depth").numpy()
    for row, (points, label) in enumerate(zip(clouds.points, clouds.labels, strict=True)):
        synset, model = f"{label + 2691156:08d}", f"{row:05d}"
        (folder / "ShapeNet" / synset).mkdir(parents=True, exist_ok=True)
        (folder / "ShapeNet" / synset / f"{model}.ply").write_bytes(encode(points, "cloud.ply"))
        write_pictures(folder / "ShapeNetRendering" / synset / model / "rendering", drawn[row])


def _write_modelnet(folder: Path, size: Size) -> None:
    classes = list(CATEGORIES)[: size.of("train")]
    _lines(folder / "modelnet40_shape_names.txt", classes)
    for subset in SUBSETS:
        clouds = _clouds(subset, size.of(subset), size.points or 10000)
        # Numbers of a class go on in the test list, as in the published one.
        first = 1 if subset == "train" else size.of("train") + 1
        ids = [f"{clouds.class_names[label]}_{first + row:04d}" for row, label in enumerate(clouds.labels)]
        for name in clouds.class_names:
            (folder / name).mkdir(exist_ok=True)
        for entry, points, normals in zip(ids, clouds.points, clouds.normals, strict=True):
            (folder / entry.rpartition("_")[0] / f"{entry}.txt").write_bytes(
                encode(np.hstack([points, normals]), ".txt")
            )
        _lines(folder / f"modelnet40_{subset}.txt", ids)


def _write_dat(folder: Path) -> None:
    """Write the caches of the published loader: a pickle of a list of (P, 6) arrays and a list of (1,) labels."""
    classes = (folder / "modelnet40_shape_names.txt").read_text(encoding="utf-8").split()
    for subset in SUBSETS:
        clouds, labels = [], []
        for entry in (folder / f"modelnet40_{subset}.txt").read_text(encoding="utf-8").split():
            name = entry.rpartition("_")[0]
            table = np.loadtxt(folder / name / f"{entry}.txt", np.float32, delimiter=",")
            points = min(DAT_POINTS, len(table))
            clouds.append(table[fps(torch.from_numpy(table[None, :, :3]), points)[0].numpy()])
            labels.append(np.array([classes.index(name)], np.int32))
        path = folder / f"modelnet40_{subset}_{points}pts_fps.dat"
        write_atomic(path, lambda file, content=(clouds, labels): pickle.dump(list(content), file))


def _write_hdf5(folder: Path, size: Size, points: int, up: str, categories: list[str] | None = None) -> None:
    for subset in SUBSETS:
        clouds = _clouds(subset, size.of(subset), size.points or points, categories)
        data = clouds.points if up == "y" else clouds.points[:, :, [0, 2, 1]] * np.array([1, -1, 1], np.float32)
        _save_hdf5(folder / f"ply_data_{subset}0.h5", data, clouds.labels[:, None].astype(np.uint8))
    _lines(folder / "shape_names.txt", (categories or list(CATEGORIES))[: size.of("train")])


def _save_hdf5(path: Path, data: np.ndarray, labels: np.ndarray) -> None:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = data, labels


def _write_modelnet40_svm(folder: Path, size: Size) -> None:
    _write_hdf5(folder, size, 2048, "y")


def _write_modelnet10(folder: Path, size: Size) -> None:
    _write_hdf5(folder, size, 1024, "z", list(CATEGORIES)[:10])


def _write_scan(folder: Path, size: Size) -> None:
    """Write all three variants: they share one folder."""
    variants = {"OBJ-BG": "main_split", "OBJ": "main_split_nobg", "PB": "main_split"}
    for subset in SUBSETS:
        clouds = _clouds(subset, size.of(subset), size.points or 2048, list(CATEGORIES)[: len(CLASSES)])
        for number, (split, inner) in enumerate(variants.items()):
            # Not on the unit sphere, as the scans are not; each variant a little different.
            data = (clouds.points * (1.3 + 0.1 * number)).astype(np.float32)
            _save_hdf5(folder / inner / FILES[split][subset], data, clouds.labels.astype(np.int32))


def _write_few_shot(folder: Path, size: Size) -> None:
    """Write all ten folds of all four settings: twenty clouds of each class, whatever `clouds` says."""
    counts = {"train": len(CATEGORIES) * max(shot for _, shot in SETTINGS), "test": len(CATEGORIES) * TEST_CLOUDS}
    parts = [_clouds(subset, counts[subset], size.points or FEW_SHOT_POINTS) for subset in SUBSETS]
    for way, shot in SETTINGS:
        write_folds(*parts, folder, way=way, shot=shot, folds=FOLDS)


def _write_parts(folder: Path, size: Size) -> None:
    first = np.cumsum([0, *(parts for _, _, parts, _ in PARTS)])  # global number of each category's first part
    splits = {
        "train": ("train", size.of("train")),
        "val": ("train", size.of("test")),
        "test": ("test", size.of("test")),
    }
    _lines(folder / "synsetoffset2category.txt", [f"{name}\t{synset}" for name, synset, _, _ in PARTS])
    entries: dict[str, list[str]] = {split: [] for split in splits}
    for number, (_, synset, parts, stand_in) in enumerate(PARTS):
        (folder / synset).mkdir()
        # Train and val are drawn together, so that they differ.
        share = {split: len(range(number, count, len(PARTS))) or 1 for split, (_, count) in splits.items()}
        drawn = {
            "train": _clouds("train", share["train"] + share["val"], size.points or 2500, [stand_in]),
            "test": _clouds("test", share["test"], size.points or 2500, [stand_in]),
        }
        rows = {
            "train": range(share["train"]),
            "val": range(share["train"], len(drawn["train"])),
            "test": range(share["test"]),
        }
        for split, (subset, _) in splits.items():
            for row in rows[split]:
                local = drawn[subset].part_labels[row] - min(PART_IDS[stand_in].values())
                part = first[number] + np.minimum(local, parts - 1)
                table = np.hstack([drawn[subset].points[row], drawn[subset].normals[row], part[:, None]])
                entry = f"{stand_in}_{subset}_{row:04d}"
                np.savetxt(folder / synset / f"{entry}.txt", table, fmt=["%.5f"] * 3 + ["%.3f"] * 3 + ["%.6f"])
                entries[split].append(f"shape_data/{synset}/{entry}")
    for split, names in entries.items():
        path = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        _lines(path, [json.dumps(names)])


def _write_scannet(folder: Path, size: Size) -> None:
    """Write built-in rooms; each of their classes has the name and the id of one of ScanNet's."""
    ids = list(scannet.CLASSES.values())
    scenes = folder / "scannet_train_detection_data"
    scenes.mkdir()
    for number, (split, subset) in enumerate({"train": "train", "val": "test"}.items()):
        rooms = read_scenes(
            SyntheticScenesConfig(subset=subset, scenes=size.of(subset), N_POINTS=size.points or 50_000)
        )
        names = [f"scene{100 * number + row:04d}_00" for row in range(len(rooms))]
        for row, name in enumerate(names):
            count = int(rooms.counts[row])
            boxes = rooms.boxes[row, : rooms.box_counts[row], :7].copy()
            boxes[:, 6] = [ids[int(label)] for label in boxes[:, 6]]
            labels = np.zeros(count, np.uint32)
            vertices = np.hstack([rooms.points[row, :count], rooms.colors[row, :count]]).astype(np.float32)
            arrays = {"vert": vertices, "ins_label": labels, "sem_label": labels, "bbox": boxes}
            for part, array in arrays.items():
                np.save(scannet.path_of(scenes, name, part), array)
        _lines(folder / "meta_data" / f"scannetv2_{split}.txt", names)


def _write_corruptions(folder: Path, size: Size) -> None:
    """Write noise that grows with the severity, for every kind of corruption."""
    clouds = _clouds("test", size.of("test"), size.points or 1024)
    np.save(folder / "label.npy", clouds.labels[:, None])
    # The classes of the ModelNet fixture, so that its classifiers can be evaluated here.
    _lines(folder / "shape_names.txt", list(CATEGORIES)[: size.of("train")])
    np.save(folder / "data_original.npy", clouds.points)
    for number, kind in enumerate(CORRUPTIONS):
        noise = np.random.default_rng(number).normal(size=clouds.points.shape)
        for level in SEVERITIES:
            np.save(file_of(folder, kind, level), (clouds.points + 0.01 * level * noise).astype(np.float32))


_WRITERS: dict[str, Callable[[Path, Size], None]] = {
    "ShapeNet": _write_shapenet,
    "ShapeNetRender": _write_shapenet_render,
    "ModelNet": _write_modelnet,
    "ModelNet40_SVM": _write_modelnet40_svm,
    "ModelNet10": _write_modelnet10,
    "Scan_OBJ-BG": _write_scan,
    "Scan_OBJ": _write_scan,
    "Scan_PB": _write_scan,
    "ModelNetFewShot": _write_few_shot,
    "ShapeNetPart": _write_parts,
    "ScanNet": _write_scannet,
    "ModelNet40-C": _write_corruptions,
}
