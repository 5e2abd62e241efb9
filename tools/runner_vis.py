"""Pictures of a pre-trained model: clouds of a data set or of one's own files, what the encoder saw, what was rebuilt."""

import io
import re
import zipfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from torch import nn

from datasets import CloudSet, build_dataset
from models import load_weights
from tools.compile import compile_regions
from tools.context import RunContext, build_pretraining_model
from tools.engine import autocast
from tools.gallery_items import reconstruction_gallery
from tools.ply import write_ply
from tools.report import GalleryItem, write_report
from utils.checkpoint import write_atomic
from utils.errors import UserError

DEFAULT_COUNT = 8
CHUNK = 32  # clouds that the model sees at a time
FORMATS = (".npy", ".npz", ".txt", ".xyz", ".ply")
# Cloud of a gallery row -> the name that the published program gives its text file.
PUBLISHED_NAMES = {"input": "gt.txt", "visible": "vis.txt", "rebuilt": "dense_points.txt"}
PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def run_vis(run: RunContext) -> Path:
    """Mask and rebuild clouds with a checkpoint; returns the folder with the page, the picture and the files of points.

    Raises:
        UserError: the checkpoint does not fit, the configuration is of no pre-training model, or clouds cannot be read.
    """
    args = run.args
    model = build_pretraining_model(run)
    if not hasattr(model, "group"):
        raise UserError(
            f"--config: {run.config.model.NAME} rebuilds nothing; use a recipe of cfgs/pre-training/ with a pre-trained model"
        )
    run.log.info(f"{args.ckpts}: {load_weights(model, args.ckpts)}")
    if args.compile:
        compile_regions(model)
    if args.input:
        source, items = str(args.input), _own_items(run, model)
    else:
        source, items = _dataset_items(run, model)
    folder = run.folder / f"vis_{datetime.now():%Y%m%d_%H%M%S}"
    folder.mkdir(parents=True)
    for index, item in enumerate(items):
        _write_clouds(folder / f"{index:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', item.name)}", item)
    path = write_report(
        folder,
        config=run.config_dict(),
        gallery=items,
        summary={"Checkpoint": str(args.ckpts), "Clouds": f"{len(items)} of {source}", "Seed of the masks": run.seed},
        title=f"{run.config.model.NAME} rebuilds: {args.exp_name}",
    )
    run.log.info(f"{len(items)} clouds of {source}, report: {path}")
    return folder


def _dataset_items(run: RunContext, model: nn.Module) -> tuple[str, list[GalleryItem]]:
    """Rebuild clouds spread evenly over the test, validation or training set of the recipe."""
    entries = run.config.dataset
    name = next((name for name in ("test", "val", "train") if getattr(entries, name) is not None), None)
    if name is None:
        raise UserError("dataset: has no test, val or train entry; add one, or give clouds with --input")
    if name == "train":
        run.log.info("dataset has neither test nor val: these are clouds of the training set")
    clouds = build_dataset(getattr(entries, name))
    chosen = _spread(len(clouds), run.args.count or DEFAULT_COUNT)
    items = []
    for begin in range(0, len(chosen), CHUNK):
        part = clouds.select(chosen[begin : begin + CHUNK])
        items += _rebuild(run, model, part, seed=run.seed + begin)
    return f"{clouds.name} ({clouds.subset})", items


def _own_items(run: RunContext, model: nn.Module) -> list[GalleryItem]:
    """Rebuild the clouds of `--input`, one at a time, because they may differ in size."""
    files = cloud_files(run.args.input)
    entries = run.config.dataset
    entry = next((entry for entry in (entries.test, entries.val, entries.train) if entry is not None), None)
    npoints = getattr(entry, "npoints", 0) or getattr(entry, "num_points", 0) or run.config.npoints
    up_axis = getattr(entry, "UP_AXIS", "y")
    items = []
    for index in _spread(len(files), run.args.count or len(files)):
        points = read_cloud(files[index])
        # In double precision: map coordinates are large, and single precision would round their differences.
        points = (points - points.mean(axis=0)).astype(np.float32)
        sampled = bool(npoints) and len(points) > npoints
        clouds = CloudSet(
            points[None],
            name=str(files[index]),
            subset="input",
            names=[files[index].stem],
            npoints=npoints if sampled else 0,
            sampling="random" if sampled else "all",
            normalize=True,
            up_axis=up_axis,
        )
        try:
            items += _rebuild(run, model, clouds, seed=run.seed + index)
        except ValueError as error:
            raise UserError(f"{files[index]}: its {len(points)} points do not fit this model: {error}") from error
    return items


def _rebuild(run: RunContext, model: nn.Module, clouds: CloudSet, *, seed: int) -> list[GalleryItem]:
    with autocast(run.device, run.config.precision):
        return reconstruction_gallery(model, clouds, seed, run.device, count=len(clouds))


def _spread(total: int, count: int) -> np.ndarray:
    """Choose `count` of `total` indices, first and last included, evenly spaced."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)


def _write_clouds(folder: Path, item: GalleryItem) -> None:
    """Write each cloud of a gallery row as PLY and, under the published names, as text."""
    folder.mkdir()
    for name, points in item.clouds.items():
        write_ply(folder / f"{name}.ply", points)
        write_atomic(
            folder / PUBLISHED_NAMES[name],
            lambda file, points=points: np.savetxt(file, points, fmt="%.9g", delimiter=";"),
        )


def cloud_files(path: str | Path) -> list[Path]:
    """Return the clouds that `--input` means, sorted by name.

    Raises:
        UserError: there is no such file or folder, or none of a format that can be read.
    """
    path = Path(path)
    known = ", ".join(FORMATS)
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in FORMATS)
        if not files:
            raise UserError(f"--input {path}: holds no cloud; the formats are {known}")
        return files
    if not path.exists():
        raise UserError(f"--input {path}: does not exist; give a file ({known}) or a folder of them")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--input {path}: is of no format that can be read; convert it to one of {known}")
    return [path]


def read_cloud(path: Path) -> np.ndarray:
    """Read the points of a file as (n, 3) float64: the first three columns, or x, y, z of a PLY file.

    Raises:
        UserError: the file cannot be read, has no three columns, no points, or values that are not finite.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz, ".ply": _read_ply}
    try:
        points = readers.get(path.suffix.lower(), _read_text)(path)
        if points.ndim != 2 or points.shape[1] < 3 or not len(points):
            raise ValueError(f"has shape {points.shape}, expected one row of at least x, y, z a point")
        points = np.asarray(points[:, :3], np.float64)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a cloud: {error}") from error
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: point {bad[0]} is not finite ({len(bad)} points are); remove them")
    return points


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = arrays.files
        if "points" not in names and len(names) != 1:
            raise ValueError(f"holds the arrays {', '.join(names) or 'none'}; name one of them points")
        return arrays["points" if "points" in names else names[0]]


def _read_text(path: Path) -> np.ndarray:
    """Read rows of numbers that blanks, commas or semicolons separate; `#` starts a comment."""
    text = re.sub(r"[,;]", " ", path.read_text(encoding="utf-8"))
    if not text.strip():
        raise ValueError("the file is empty")
    return np.loadtxt(io.StringIO(text), ndmin=2, usecols=(0, 1, 2))


def _read_ply(path: Path) -> np.ndarray:
    """Read the vertices of an ASCII or binary PLY file; what follows them (faces) is left out."""
    head, mark, body = path.read_bytes().partition(b"end_header")
    if not head.startswith(b"ply") or not mark:
        raise ValueError("is no PLY file: it does not start with ply, or its header does not end")
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    layout = next((line[1] for line in lines if line[:1] == ["format"] and len(line) > 1), None)
    count, columns = _vertex_layout(lines)
    body = body.partition(b"\n")[2]
    if layout == "ascii":
        rows = [row.split() for row in body.splitlines()[:count]]
        if len(rows) < count or any(len(row) < len(columns) for row in rows):
            raise ValueError(f"its header says {count} vertices of {len(columns)} values, its data ends before")
        at = [list(columns).index(axis) for axis in "xyz"]
        return np.array([[row[i] for i in at] for row in rows], np.float64).reshape(-1, 3)
    orders = {"binary_little_endian": "<", "binary_big_endian": ">"}
    if layout not in orders:
        raise ValueError(f"its format {layout} is unknown; expected ascii, {' or '.join(orders)}")
    kind = np.dtype([(name, orders[layout] + code) for name, code in columns.items()])
    vertices = np.frombuffer(body, kind, count)
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=1)


def _vertex_layout(lines: Sequence[list[str]]) -> tuple[int, dict[str, str]]:
    """Return the number of vertices and property -> type of NumPy, from the words of a PLY header."""
    count, columns = None, {}
    for words in lines:
        if words[:1] == ["element"] and count is not None:
            break
        if words[:2] == ["element", "vertex"] and len(words) == 3:
            count = int(words[2])
        elif words[:1] == ["element"]:
            raise ValueError(f"its first element is {' '.join(words[1:2])}; expected vertex")
        elif words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in PLY_TYPES:
                raise ValueError(f"its vertex property {' '.join(words[1:])} is not a number that can be read")
            columns[words[2]] = PLY_TYPES[words[1]]
    if count is None or not {"x", "y", "z"} <= set(columns):
        raise ValueError("its header has no vertices with x, y and z")
    return count, columns
