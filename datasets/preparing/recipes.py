"""Recipes for a set of one's own: pre-training, linear SVM, fine-tuning, few-shot, segmentation, with sizes that fit it.

Each is a small file over one of cfgs/: the data, the classes, and what follows from how many clouds there are.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets import DATASETS, CloudSet, build_dataset
from datasets.folder import FolderConfig, find_files
from datasets.formats.cloud_files import read_shape
from datasets.formats.points import Notes, check_up
from datasets.preparing.recognise import fitting, recognise
from utils import ROOT
from utils.config.load import read_recipe
from utils.config.yaml import write_yaml
from utils.errors import UserError, printable, suggest
from utils.files import explain_write, write_atomic

# Size -> (points that the model sees, updates of a training; 0 = as many epochs as published).
SIZES = {"tiny": (256, 120), "small": (1024, 3000), "published": (2048, 0)}
SMALL_SET = 10_000  # training clouds below which the published size has too little to learn from
# File of a task in cfgs/ by size; {m} is the method. The first that there is.
BASES = {
    "pre-training": {
        "tiny": ("debug/{m}",),
        "small": ("pre-training/{m}/modelnet10-tiny", "pre-training/{m}/modelnet10-mini"),
        "published": ("pre-training/{m}",),
    },
    "fine-tuning": {
        "tiny": ("fine-tuning/{m}/debug",),
        "small": ("fine-tuning/{m}/modelnet10-tiny", "fine-tuning/{m}/modelnet10-mini", "fine-tuning/{m}/modelnet40"),
        "published": ("fine-tuning/{m}/modelnet40",),
    },
    "segmentation": {
        "tiny": ("segmentation/{m}/debug", "segmentation/{m}/shapenet_part"),
        "small": ("segmentation/{m}/psb_parts-tiny", "segmentation/{m}/shapenet_part"),
        "published": ("segmentation/{m}/shapenet_part",),
    },
}
# Keys that give an encoder its size: a classifier and a segmenter take them from the pre-training recipe.
SHAPE = (
    "num_groups", "group_sizes", "encoder_dims", "encoder_depths", "num_group", "group_size", "trans_dim", "depth",
    "num_heads", "embed_widths",
)  # fmt: skip
STORED = 8192  # most points that are kept of a cloud
WAYS, SHOTS = 5, 10  # of few-shot, or as many as there are


@dataclass(frozen=True)
class Options:
    """What the user chose."""

    method: str = "point-m2ae"
    size: str = ""  # empty: by the number of clouds
    up: str = "y"
    listed: str = ""  # table of path, class and split
    epochs: int = 0  # of each training; 0 = by the number of clouds
    overwrite: bool = False

    def __post_init__(self):
        methods = sorted(path.stem for path in (ROOT / "cfgs" / "pre-training").glob("*.yaml"))
        if self.method not in methods:
            raise UserError(f"--method {self.method}: is unknown; {suggest(self.method, methods)}")
        if self.size and self.size not in SIZES:
            raise UserError(f"--size {self.size}: is unknown; {suggest(self.size, SIZES)}")
        if self.epochs < 0:
            raise UserError(f"--epochs {self.epochs}: must be at least 1")
        check_up(self.up)


def write_recipes(folder: Path, out: Path, options: Options) -> list[str]:
    """Read a set, write the recipes for it into `out`, and return lines that say which, and the commands that use them.

    Raises:
        UserError: the set cannot be read, or `out` holds recipes.
    """
    return _Recipes(folder, out, options).write()


class _Recipes:
    """The recipes of one set.

    Attributes:
        data: keys of the data set.
        train, test: its splits.
        notes: what the user should know.
        files: name of a recipe -> its content.
    """

    def __init__(self, folder: Path, out: Path, options: Options):
        self.folder, self.out, self.options = folder, out, options
        self.notes: list[str] = []
        self.files: dict[str, tuple[str, dict]] = {}
        self.data = self._keys()
        self.train, self.test = (self._read(subset) for subset in ("train", "test"))
        self.classes = self._classes()
        self.size = self._size(len(self.train))
        self.points = min(SIZES[self.size][0], self.train.points.shape[1])

    def write(self) -> list[str]:
        """Write the files and return what to print."""
        self._pre_training()
        if len(self.classes) > 1:
            self._linear_svm()
            self._fine_tuning()
            self._few_shot()
        if self.train.part_labels is not None:
            self._segmentation()
        head = f"# Made by: python -m datasets.prepare recipe {shlex.quote(str(self.folder))}\n"
        for name, (about, content) in self.files.items():
            path = self.out / f"{name}.yaml"
            if path.exists() and not self.options.overwrite:
                raise UserError(f"{path}: exists; replace it with --overwrite, or give another --out")
            text = f"{head}# {about}\n{write_yaml(content)}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(explain_write(path, error)) from error
            write_atomic(path, lambda file, text=text: file.write(text.encode()))
        return [self._summary(), *self.notes, *self._commands()]

    # What the set is

    def _keys(self) -> dict[str, Any]:
        layouts = recognise(self.folder)
        layout, options = layouts[0], self.options
        if len(layouts) > 1:
            self.notes.append(f"note: of {', '.join(each.name for each in layouts)} the recipes take {layout.name}")
        if layout.name in ("ModelNetFewShot", "ModelNet40-C"):
            raise UserError(
                f"{self.folder}: is {layout.name}, which nothing is trained on; give the set that it comes from"
            )
        keys = {**layout.config, **fitting(layout, self.folder), "UP_AXIS": options.up}
        if layout.name != "Folder":
            return keys
        keys |= {"LIST": options.listed} if options.listed else {}
        config = FolderConfig(DATA_PATH=keys["DATA_PATH"], LIST=options.listed)
        try:
            _, files = find_files(self.folder, config)
        except UserError:
            config = replace(config, COMMON_CLASSES=True)
            _, files = find_files(self.folder, config)  # raises again for whatever else is wrong
            keys["COMMON_CLASSES"] = True
            self.notes.append(
                "note: classes that one split only has are left out where labels count; pre-training takes all clouds"
            )
        return {**keys, "N_POINTS": self._stored([path for group in files for path in group])}

    def _size(self, clouds: int) -> str:
        return self.options.size or ("small" if clouds < SMALL_SET else "published")

    def _stored(self, files: list[Path]) -> int:
        """Return how many points of each cloud are kept: what the smaller ones of some clouds have, 2,048 of meshes."""
        counts = []
        for path in (files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(8, len(files))).astype(int))):
            shape = read_shape(path, Notes())
            counts.append(2048 if shape.faces is not None else len(shape.points))
        # At least what the model sees: smaller clouds repeat points.
        kept = int(min(STORED, max(SIZES[self._size(len(files))][0], np.median(counts))))
        if min(counts) != max(counts):
            self.notes.append(
                f"note: clouds have {min(counts):,} to {max(counts):,} points and more in others: {kept:,} are kept of each, points "
                "of smaller ones are repeated"
            )
        return kept

    def _read(self, subset: str) -> CloudSet:
        names = {"subset": subset}
        if self.data["NAME"] == "ShapeNetPart":
            names = {"subset": "trainval" if subset == "train" else "test"}
        fit = {"sampling": "all"} if self.data["NAME"] != "ShapeNetPart" else {}
        return build_dataset(DATASETS.config({**self.data, **names, **fit}, str(self.folder)))

    def _classes(self) -> list[str]:
        if self.train.labels is None:
            self.notes.append("note: the folder has no classes: only a recipe for pre-training, without linear SVM")
            return []
        found = len(np.unique(self.train.labels))
        names = list(self.train.class_names or map(str, range(int(self.train.labels.max()) + 1)))
        if found < 2:
            self.notes.append(
                f"note: one class only ({names[0]}), nothing to tell apart: only a recipe for pre-training, without linear SVM"
            )
            return names[:1]
        fewest = int(np.bincount(self.train.labels, minlength=len(names)).min())
        if fewest < SHOTS:
            rare = names[int(np.bincount(self.train.labels, minlength=len(names)).argmin())]
            self.notes.append(
                f"note: class {printable(rare)} has {fewest} training clouds; scores of such classes mean little"
            )
        return names

    # The recipes

    def _base(self, task: str) -> str | None:
        names = [f"cfgs/{name.format(m=self.options.method)}.yaml" for name in BASES[task][self.size]]
        return next((name for name in names if (ROOT / name).is_file()), None)

    def _entry(self, subset: str, **keys: Any) -> dict[str, Any]:
        return {"_base_": f"{self.out.name}-data.yaml", "subset": subset, **keys}

    def _batch(self, base: Mapping) -> int:
        """Return a batch that an epoch has several of."""
        wanted, half = base.get("total_bs", 128), max(1, len(self.train) // 2)
        return wanted if wanted <= half else 1 << (half.bit_length() - 1)

    def _schedule(self, base: Mapping, batch: int) -> dict[str, Any]:
        updates = SIZES[self.size][1]
        if not updates and not self.options.epochs:
            return {}
        epochs = self.options.epochs or max(3, -(-updates // max(1, len(self.train) // batch)))
        kwargs = {"epochs": epochs, "initial_epochs": max(1, epochs // 10)}
        return {
            "scheduler": {"kwargs": kwargs, "lag": 0, "per_step": True},
            "max_epoch": epochs,
            "max_epoch_inclusive": False,
        }

    def _training(self, task: str, subsets: Mapping[str, Any]) -> dict[str, Any] | None:
        name = self._base(task)
        if name is None:
            self.notes.append(f"note: {self.options.method} has no {task} of this size; try --size published")
            return None
        base = read_recipe(ROOT / name)
        batch = self._batch(base)
        return {
            "_base_": name,
            "dataset": dict(subsets),
            "model": {},
            "total_bs": batch,
            **self._schedule(base, batch),
        }

    def _pre_training(self) -> None:
        subset = "trainval" if self.data["NAME"] == "ShapeNetPart" else "train"
        every = {"LABELS": False, "COMMON_CLASSES": False} if self.data.get("COMMON_CLASSES") else {}
        sampled = {"npoints": self.points, "sampling": "random"}
        labelled = len(self.classes) > 1
        sets = {
            "train": self._entry(subset, **sampled, **every),
            "val": None,
            "svm": {"train": self._entry(subset, **self._evaluated()), "test": self._entry("test", **self._evaluated())}
            if labelled
            else None,
        }
        content = self._training("pre-training", sets)
        if content is None:
            raise UserError(f"--size {self.size}: {self.options.method} has no such recipe; {suggest('', SIZES)}")
        content.pop("model")
        if not labelled:
            content["svm"] = {"random_weights": False}
        keys = {**self.data}
        self.files[f"{self.out.name}-data"] = ("The data: keys of its reader.", keys)
        self.files["pre-training"] = ("Pre-training: mask and rebuild.", content)

    def _evaluated(self) -> dict[str, Any]:
        return {"npoints": self.points, "sampling": "first"}

    def _linear_svm(self) -> None:
        content = {"_base_": "pre-training.yaml"}
        self.files["linear-svm"] = (
            "Linear SVM, nearest neighbours and logistic regression on frozen features.",
            content,
        )

    def _shape(self, task: str) -> dict[str, Any]:
        """Return the keys with which the encoder of another task is that of pre-training."""
        own, other = (read_recipe(ROOT / self._base(name))["model"] for name in ("pre-training", task))
        flat = {**own, **own.get("transformer_config", {})}
        return {key: flat[key] for key in SHAPE if key in flat and flat[key] != other.get(key)}

    def _fine_tuning(self) -> None:
        subset = "trainval" if self.data["NAME"] == "ShapeNetPart" else "train"
        # The classifier draws its points from those that the set gives.
        given = (
            {"npoints": 0} if self.data["NAME"] in ("Folder", "ModelNet") else {"npoints": self.train.points.shape[1]}
        )
        sets = {
            "train": self._entry(subset, **given, sampling="random"),
            "val": self._entry("test", **given, sampling="first"),
            "test": self._entry("test", **given, sampling="first"),
        }
        content = self._training("fine-tuning", sets)
        if content is None:
            return
        content["model"] = {**self._shape("fine-tuning"), "cls_dim": len(self.classes)}
        wanted = read_recipe(ROOT / content["_base_"]).get("npoints", 1024)
        content |= {"npoints": min(wanted, self.points), "class_names": self.classes}
        self.files["fine-tuning"] = ("A classifier on the pre-trained encoder.", content)

    def _few_shot(self) -> None:
        if "fine-tuning" not in self.files:
            return
        way, shot = self.few
        if way < 2:
            self.notes.append("note: no few-shot recipe: fewer than two classes have two training clouds")
            return
        folds = {"NAME": "ModelNetFewShot", "DATA_PATH": self._folds().as_posix(), "NUM_CATEGORY": len(self.classes)}
        folds |= {"N_POINTS": self.train.points.shape[1], "UP_AXIS": self.data["UP_AXIS"]}
        sets = {"train": {**folds, "subset": "train"}, "val": {**folds, "subset": "test"}, "test": None}
        batch = min(self.files["fine-tuning"][1]["total_bs"], max(2, way * shot // 2))
        epochs = self.options.epochs or (20 if self.size == "tiny" else 60)
        content = {
            "_base_": "fine-tuning.yaml",
            "dataset": sets,
            "model": {"cls_dim": way},
            "class_names": None,
            "total_bs": batch,
            "scheduler": {"kwargs": {"epochs": epochs, "initial_epochs": max(1, epochs // 10)}},
            "max_epoch": epochs,
        }
        self.files["few-shot"] = (f"Few-shot classification: {way} ways, {shot} shots.", content)

    @property
    def few(self) -> tuple[int, int]:
        """Return ways and shots that the set has clouds for."""
        train, test = (np.bincount(part.labels, minlength=len(self.classes)) for part in (self.train, self.test))
        counts = np.sort(train[test > 0])[::-1]
        way = min(WAYS, int((counts >= 2).sum()))
        return way, min(SHOTS, int(counts[way - 1])) if way else 0

    def _folds(self) -> Path:
        return self.out / "few-shot-folds"

    def _segmentation(self) -> None:
        drawn = {"npoints": self.points}
        sets = {
            "train": self._entry("trainval", **drawn),
            "val": self._entry("test", **drawn),
            "test": self._entry("test", **drawn),
        }
        content = self._training("segmentation", sets)
        if content is None:
            return
        content["model"] = {
            **self._shape("segmentation"),
            "num_parts": len(self.train.part_names),
            "num_categories": len(self.train.class_names),
        }
        self.files["segmentation"] = ("Part segmentation with the pre-trained encoder.", content)

    # What is said

    def _summary(self) -> str:
        recipes = [name for name in self.files if not name.endswith("-data")]
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return (
            f"{self.out}: recipes for {', '.join(recipes)}, {self.options.method}, size {self.size}; {len(self.train):,} training "
            f"and {len(self.test):,} test clouds{classes}, {self.points:,} points"
        )

    def _commands(self) -> list[str]:
        """Return the commands that use the recipes, the first one as what comes next."""

        def config(name: str) -> str:
            return shlex.quote((self.out / f"{name}.yaml").as_posix())

        last = "experiments/" + shlex.quote(f"{self.out.name}/pre-training/own/ckpt-last.pth")
        epochs = self.files["pre-training"][1].get("max_epoch", 0)
        sparse = f" --val_freq {epochs // 5}" if epochs >= 10 and "linear-svm" in self.files else ""
        lines = [
            f"next: python main.py --config {config('pre-training')} --exp_name own{sparse}",
            "then, of its checkpoint:",
        ]
        then = {
            "linear-svm": f"python main.py --config {config('linear-svm')} --test_svm --probe knn --probe logistic --exp_name own "
            f"--ckpts {last}",
            "fine-tuning": f"python main.py --config {config('fine-tuning')} --finetune_model --exp_name own --ckpts {last}",
            "segmentation": f"python main.py --config {config('segmentation')} --exp_name own --ckpts {last}",
        }
        if "few-shot" in self.files:
            (way, shot), source = self.few, config(f"{self.out.name}-data")
            lines.append(
                f"  python -m datasets.prepare few-shot --source {source} --way {way} --shot {shot} --out "
                f"{shlex.quote(self._folds().as_posix())}"
            )
            then["few-shot"] = (
                f"python main.py --config {config('few-shot')} --finetune_model --exp_name own --way {way} --shot {shot} --fold all "
                f"--ckpts {last}"
            )
        lines += [f"  {command}" for name, command in then.items() if name in self.files]
        return lines if len(lines) > 2 else [lines[0]]
