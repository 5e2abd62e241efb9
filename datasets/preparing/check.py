"""Look at the files of a data set without reading its clouds: what is there, what is missing, how many."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import scannet
from datasets.clouds import SUBSETS, check_labels
from datasets.few_shot import TEST_CLOUDS
from datasets.folder import FolderConfig, find_files
from datasets.formats.arrays import load_npy
from datasets.formats.hdf5 import inspect, read_labels
from datasets.modelnet40_c import CORRUPTIONS, SEVERITIES, file_of
from datasets.preparing.layouts import Layout
from datasets.preparing.recognise import PUBLISHED_POINTS, fitting
from datasets.scanobjectnn import CLASSES, FILES
from utils.config.load import with_root
from utils.errors import UserError, printable
from utils.reading import read_json, read_text

SETTINGS = [(way, shot) for way in (5, 10) for shot in (10, 20)]
FOLDS = range(10)


@dataclass
class Found:
    """What is in a folder: counts by what is counted, and what is wrong."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    classes: int | None = None  # of own data

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a list, none of a missing or empty one, which is a problem."""
        if not path.is_file():
            self.problems.append(f"{path}: is missing")
            return []
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        if not lines:
            self.problems.append(f"{path}: is empty")
        twice = len(lines) - len(set(lines))
        if twice:
            self.problems.append(f"{path}: lists {twice} entries twice; remove the repetitions")
        return lines

    def absent(self, names: Sequence[str], where: Path) -> None:
        """Report missing files in one line."""
        if names:
            self.problems.append(f"{where}: {len(names):,} listed files are missing, such as {names[0]}")

    def disjoint(self, train: Iterable[str], test: Iterable[str], where: Path) -> None:
        """Note a problem where two lists share clouds."""
        both = sorted(set(train) & set(test))
        if both:
            self.problems.append(
                f"{where}: the lists of train and test share {len(both):,} clouds, such as {both[0]}; one of the lists is another split's"
            )


def look(layout: Layout, data_root: Path, *, any_count: bool = False, read: bool = False) -> Found:
    """Look at one data set below `data_root`.

    Args:
        any_count: accept other numbers of clouds than the published ones, as fixtures and own sets have them.
        read: read both splits as a run does, which checks every cloud and fills the cache.
    """
    folder = layout.folder(data_root)
    found = Found()
    if layout.name != "Synthetic" and not folder.is_dir():
        found.problems.append(f"{folder}: does not exist" if not folder.exists() else f"{folder}: is not a folder")
        return found
    try:
        _LOOKERS[layout.name](folder, layout, found)
    except (UserError, OSError) as error:
        found.problems.append(printable(error))
    fewer = fitting(layout, folder)
    if not any_count:
        found.problems += _wrong_counts(layout, found)
        found.problems += [
            f"clouds of {points:,} points, {PUBLISHED_POINTS[layout.name]:,} are read; a fixture, or own data (--any_count accepts them)"
            for points in fewer.values()
        ]
    if read and not found.problems and layout.config:
        found.problems += _read_problems(layout, data_root, fewer)
    return found


def _wrong_counts(layout: Layout, found: Found) -> list[str]:
    published = layout.counts
    if set(published) == set(SUBSETS) and [found.counts.get(s) for s in SUBSETS] == [
        published["test"],
        published["train"],
    ]:
        return ["train has the published number of test clouds and test that of train: the two are mixed up"]
    return [
        f"{what}: {found.counts[what]:,} found, {number:,} published; another set, a part of it, or own data (--any_count accepts them)"
        for what, number in published.items()
        if found.counts.get(what) not in (None, number)
    ]


def _read_problems(layout: Layout, data_root: Path, fewer: dict[str, int]) -> list[str]:
    from datasets import DATASETS, build_dataset

    settings = [{**fewer, "sampling": "all"} if fewer else {}]
    if layout.name == "ModelNetFewShot":
        settings = [{"way": way, "shot": shot, "fold": fold} for way, shot in SETTINGS for fold in FOLDS]
    subsets = SUBSETS
    if layout.name == "ModelNet40-C":
        settings = [{"corruption": kind, "severity": level} for kind in CORRUPTIONS for level in SEVERITIES]
        subsets = ("test",)
    if layout.name == "ScanNet":
        subsets = scannet.SPLITS
    problems = []
    for keys in settings:
        for subset in subsets:
            config = DATASETS.config({**layout.config, **keys, "subset": subset})
            try:
                build_dataset(with_root(config, data_root) if layout.root else config)
            except UserError as error:
                problems.append(str(error))
    return problems


def _look_shapenet(folder: Path, layout: Layout, found: Found) -> None:
    listed = {subset: found.lines(folder / "ShapeNet-55" / f"{subset}.txt") for subset in SUBSETS}
    clouds = folder / "shapenet_pc"
    there = set(os.listdir(clouds)) if clouds.is_dir() else set()
    if not clouds.is_dir():
        found.problems.append(f"{clouds}: is missing")
    for subset, names in listed.items():
        found.counts[subset] = sum(name in there for name in names)
        if there:
            found.absent([name for name in names if name not in there], clouds)
    found.disjoint(*listed.values(), folder / "ShapeNet-55")
    first = next((name for names in listed.values() for name in names if name in there), None)
    if first is not None:
        shape = _npy_shape(clouds / first)
        if len(shape) != 2 or shape[1] != 3:
            found.problems.append(f"{clouds / first}: has shape {shape}; expected (8192, 3)")


def _look_shapenet_render(folder: Path, layout: Layout, found: Found) -> None:
    clouds = {f"{path.parent.name}/{path.stem}" for path in (folder / "ShapeNet").glob("*/*.ply")}
    drawn = {
        f"{path.parents[2].name}/{path.parents[1].name}"
        for path in (folder / "ShapeNetRendering").glob("*/*/rendering/*.png")
    }
    found.counts["shapes"] = len(clouds & drawn)
    if not clouds:
        found.problems.append(f"{folder / 'ShapeNet'}: holds no cloud <synset>/<model>.ply")
    if clouds - drawn:
        found.absent(sorted(f"{name}/rendering/*.png" for name in clouds - drawn), folder / "ShapeNetRendering")


def _npy_shape(path: Path) -> tuple[int, ...]:
    return load_npy(path, mapped=True).shape


def _look_modelnet(folder: Path, layout: Layout, found: Found) -> None:
    prefix = "modelnet10" if (folder / "modelnet10_shape_names.txt").is_file() else "modelnet40"
    classes = found.lines(folder / f"{prefix}_shape_names.txt")
    listed = {subset: found.lines(folder / f"{prefix}_{subset}.txt") for subset in SUBSETS}
    there = {name: set(os.listdir(folder / name)) if (folder / name).is_dir() else set() for name in classes}
    for subset, ids in listed.items():
        unknown = [entry for entry in ids if entry.rpartition("_")[0] not in there]
        if unknown and classes:
            found.problems.append(
                f"{folder / f'{prefix}_{subset}.txt'}: {unknown[0]} is of no class in {prefix}_shape_names.txt"
            )
        absent = [entry for entry in ids if f"{entry}.txt" not in there.get(entry.rpartition("_")[0], ())]
        if (folder / f"{prefix}_{subset}_8192pts_fps.dat").is_file():
            absent = []  # read instead of the text files
        found.counts[subset] = len(ids) - len(absent)
        found.absent([f"{entry.rpartition('_')[0]}/{entry}.txt" for entry in absent], folder)
    found.disjoint(*listed.values(), folder)


def _look_hdf5(folder: Path, layout: Layout, found: Found) -> None:
    names = folder / "shape_names.txt"
    classes = len(found.lines(names)) if names.is_file() else (10 if layout.name == "ModelNet10" else 40)
    for subset in SUBSETS:
        files = sorted(folder.glob(f"ply_data_{subset}*.h5"))
        if not files:
            found.problems.append(f"{folder / f'ply_data_{subset}0.h5'}: is missing")
        _count_hdf5(files, classes, subset, found)


def _look_scan(folder: Path, layout: Layout, found: Found) -> None:
    inner = folder / layout.config["ROOT"].rpartition("/")[2]
    for subset, name in FILES[layout.config["SPLIT"]].items():
        path = inner / name
        if path.is_file():
            _count_hdf5([path], len(CLASSES), subset, found)
        else:
            found.problems.append(f"{path}: is missing")


def _count_hdf5(files: Sequence[Path], classes: int, subset: str, found: Found) -> None:
    found.counts[subset] = 0
    for path in files:
        try:
            found.counts[subset] += inspect(path).count
            check_labels(read_labels(path), classes, str(path))
        except UserError as error:
            found.problems.append(str(error))


def _look_few_shot(folder: Path, layout: Layout, found: Found) -> None:
    absent, count = [], 0
    for way, shot in SETTINGS:
        inner = folder / f"{way}way_{shot}shot"
        inner = inner if inner.is_dir() else folder / f"{way}way{shot}shot"
        for fold in FOLDS:
            path = inner / f"{fold}.pkl"
            # A fold of one point a cloud would be larger; pickles themselves are read by the reader, in safety.
            whole = path.is_file() and path.stat().st_size > way * (shot + TEST_CLOUDS) * 12
            count += whole
            if not whole:
                absent.append(f"{way}way_{shot}shot/{fold}.pkl" + (" (cut short)" if path.is_file() else ""))
    found.counts["folds"] = count
    found.absent(absent, folder)


def _look_parts(folder: Path, layout: Layout, found: Found) -> None:
    found.lines(folder / "synsetoffset2category.txt")
    listed = {}
    for split in ("train", "val", "test"):
        path = folder / "train_test_split" / f"shuffled_{split}_file_list.json"
        listed[split] = []
        if not path.is_file():
            found.problems.append(f"{path}: is missing")
            continue
        try:
            listed[split] = [entry.split("/", 1)[1] for entry in read_json(path, "a list of shape_data/<folder>/<id>")]
        except (ValueError, AttributeError, IndexError, TypeError) as error:
            raise UserError(
                f"{path}: is no list of shape_data/<folder>/<id> ({error}); copy or download it again"
            ) from error
    folders = {entry.split("/")[0] for names in listed.values() for entry in names}
    there = {f"{name}/{file}" for name in folders if (folder / name).is_dir() for file in os.listdir(folder / name)}
    joined = {"train + val": {*listed["train"], *listed["val"]}, "test": set(listed["test"])}
    for what, entries in joined.items():
        absent = sorted(f"{entry}.txt" for entry in entries if f"{entry}.txt" not in there)
        found.counts[what] = len(entries) - len(absent)
        # Nine entries of the published lists have no file, and every program leaves them out.
        if what == "test" or found.counts[what] != layout.counts[what]:
            found.absent(absent, folder)
    found.disjoint(*joined.values(), folder / "train_test_split")


def _look_scannet(folder: Path, layout: Layout, found: Found) -> None:
    scenes = folder / "scannet_train_detection_data"
    there = set(os.listdir(scenes)) if scenes.is_dir() else set()
    if not scenes.is_dir():
        found.problems.append(f"{scenes}: is missing")
    listed = {subset: found.lines(folder / "meta_data" / f"scannetv2_{subset}.txt") for subset in scannet.SPLITS}
    for subset, names in listed.items():
        files = {name: [scannet.path_of(scenes, name, part).name for part in scannet.PARTS] for name in names}
        found.counts[subset] = sum(there.issuperset(own) for own in files.values())
        if there:
            found.absent([file for own in files.values() for file in own if file not in there], scenes)
    found.disjoint(*listed.values(), folder / "meta_data")
    for name in next((names for names in listed.values() if names), [])[:1]:
        if not found.problems:
            scannet.vertices_of(scenes, name)


def _look_corruptions(folder: Path, layout: Layout, found: Found) -> None:
    labels = folder / "label.npy"
    count = _npy_shape(labels)[0] if labels.is_file() else None
    if count is None:
        found.problems.append(f"{labels}: is missing")
    names = [file_of(folder, kind, level).name for kind in CORRUPTIONS for level in SEVERITIES]
    absent = [name for name in names if not (folder / name).is_file()]
    found.counts["files"] = len(names) - len(absent)
    found.absent(absent, folder)
    for name in names:
        shape = _npy_shape(folder / name) if name not in absent else None
        if shape is not None and (len(shape) != 3 or shape[2] != 3 or shape[0] != (count or shape[0])):
            found.problems.append(
                f"{folder / name}: has shape {shape}; expected ({count}, points, 3), as many clouds as label.npy has labels"
            )


def _look_folder(folder: Path, layout: Layout, found: Found) -> None:
    for subset in SUBSETS:
        classes, files = find_files(folder, FolderConfig(subset=subset))
        found.counts[subset] = sum(map(len, files))
    found.classes = None if classes is None else len(classes)


def _look_synthetic(folder: Path, layout: Layout, found: Found) -> None:
    from datasets.synthetic.reader import DEFAULT_CLOUDS

    found.counts.update(DEFAULT_CLOUDS)


_LOOKERS: dict[str, Callable[[Path, Layout, Found], None]] = {
    "ShapeNet": _look_shapenet,
    "ShapeNetRender": _look_shapenet_render,
    "ModelNet": _look_modelnet,
    "ModelNet40_SVM": _look_hdf5,
    "ModelNet10": _look_hdf5,
    "Scan_OBJ-BG": _look_scan,
    "Scan_OBJ": _look_scan,
    "Scan_PB": _look_scan,
    "ModelNetFewShot": _look_few_shot,
    "ShapeNetPart": _look_parts,
    "ScanNet": _look_scannet,
    "ModelNet40-C": _look_corruptions,
    "Folder": _look_folder,
    "Synthetic": _look_synthetic,
}


def report(layout: Layout, found: Found, data_root: Path) -> str:
    """Say in words what was found, and, where something is wrong, what belongs there and how to get it."""
    lines = [f"{layout.name}: {layout.folder(data_root)}" if layout.tree else f"{layout.name}: built in"]
    for what, number in found.counts.items():
        published = f" of {layout.counts[what]:,}" if what in layout.counts else ""
        lines.append(
            f"  {what}: {number:,}{published}" + (" clouds" if what not in ("folds", "files", "shapes") else "")
        )
    if found.classes is not None:
        lines.append(f"  classes: {found.classes:,}")
    if not found.problems:
        return "\n".join([*lines, "  complete"])
    lines += [f"  wrong: {problem}" for problem in found.problems]
    lines += [f"  expected in {layout.folder(data_root)}:", *(f"    {line}" for line in layout.tree.splitlines())]
    lines.append(f"  remedy: {layout.remedy(data_root)}")
    if layout.name not in ("Folder", "Synthetic"):
        lines.append(
            f"  to try things without it: python -m datasets.prepare fixtures {layout.name} --out DIR, and --data_root DIR"
        )
    return "\n".join(lines)


def table(rows: Sequence[tuple[Layout, Found]], data_root: Path) -> str:
    """Give one line a data set: name, what there is of what is published, state, folder."""
    cells = [("data set", "found / published", "state", "folder")]
    for layout, found in rows:
        counts = ", ".join(
            f"{what} {number:,}" + (f"/{layout.counts[what]:,}" if what in layout.counts else "")
            for what, number in found.counts.items()
        )
        absent = layout.tree and not layout.folder(data_root).exists()
        state = "absent" if absent else f"{len(found.problems)} problems" if found.problems else "complete"
        cells.append((layout.name, counts or "-", state, str(layout.folder(data_root)) if layout.tree else "built in"))
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
