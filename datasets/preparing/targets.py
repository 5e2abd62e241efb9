"""The layouts that `convert` writes: where each cloud goes, how it is stored, and the lists that complete the set.

Legend: P points of a cloud.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from utils.errors import UserError
from utils.files import write_atomic

CLOUDS_A_FILE = 2048  # of one HDF5 file, as published


@dataclass(frozen=True)
class Cloud:
    """One cloud of a conversion: its source, and what the layout makes of it."""

    source: str  # path below the input, with slashes
    label: int  # -1 without classes
    split: str  # "train", "test", or "" where the layout keeps the folders as they are
    output: str  # path below the output


@dataclass(frozen=True)
class Target:
    """One layout.

    Args:
        points: default number of points.
        normals: whether rows are x, y, z and the normal.
        unit_sphere: scale clouds to the unit sphere; they are centred in any case.
        output: (class, stem, source) -> path of a cloud without what tells namesakes apart, and its ending.
        needs: "" | "split" | "classes" (and a split).
        finish: writes what the set needs besides the clouds.
        pictures: path of a cloud -> folder of the pictures that are drawn of it, in layouts that have some.
    """

    points: int
    normals: bool
    unit_sphere: bool
    output: Callable[[str, str, str], tuple[str, str]]
    needs: str
    finish: Callable[[Path, Sequence[Cloud], list[str]], None]
    pictures: Callable[[str], str] | None = None


def encode(points: np.ndarray, output: str) -> bytes:
    """Return the file of a cloud (P, 3 or 6): text for `.txt`, binary PLY of the coordinates for `.ply`, else a float32 array."""
    buffer = io.BytesIO()
    if output.endswith(".ply"):
        import trimesh

        return trimesh.PointCloud(points[:, :3].astype(np.float32)).export(file_type="ply")
    if output.endswith(".txt"):
        np.savetxt(buffer, points, fmt="%.6f", delimiter=",")
    else:
        np.save(buffer, points.astype(np.float32))
    return buffer.getvalue()


def _word(name: str) -> str:
    return "_".join(name.split())


def _folder_output(name: str, stem: str, source: str) -> tuple[str, str]:
    return str(PurePosixPath(source).with_suffix("")), ".npy"


def _shapenet_output(name: str, stem: str, source: str) -> tuple[str, str]:
    # The reader takes what stands before the first dash for the class, and blanks for the end of a name.
    return f"shapenet_pc/{_word(name or 'object').replace('-', '_')}-{_word(stem)}", ".npy"


def _modelnet_output(name: str, stem: str, source: str) -> tuple[str, str]:
    # The class is what stands before the last "_" of an id.
    number = stem.removeprefix(f"{name}_").replace("_", "-")
    return f"{name}/{name}_{number}", ".txt"


def _hdf5_output(name: str, stem: str, source: str) -> tuple[str, str]:
    return f".clouds/{name}/{stem}", ".npy"


def _render_output(name: str, stem: str, source: str) -> tuple[str, str]:
    return f"ShapeNet/{_word(name or 'object')}/{_word(stem)}", ".ply"


def _render_pictures(output: str) -> str:
    folder = PurePosixPath(output).with_suffix("").relative_to("ShapeNet")
    return f"ShapeNetRendering/{folder}/rendering"


def _write_text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")))


def _finish_folder(out: Path, clouds: Sequence[Cloud], classes: list[str]) -> None:
    """Nothing: the folders say it all."""


def _finish_shapenet(out: Path, clouds: Sequence[Cloud], classes: list[str]) -> None:
    for split in ("train", "test"):
        names = [PurePosixPath(cloud.output).name for cloud in clouds if cloud.split == split]
        _write_text(out / "ShapeNet-55" / f"{split}.txt", names)


def _finish_modelnet(out: Path, clouds: Sequence[Cloud], classes: list[str]) -> None:
    # The reader looks for lists of this name for any number of classes but ten.
    prefix = "modelnet10" if len(classes) == 10 else "modelnet40"
    _write_text(out / f"{prefix}_shape_names.txt", classes)
    for split in ("train", "test"):
        ids = [PurePosixPath(cloud.output).stem for cloud in clouds if cloud.split == split]
        _write_text(out / f"{prefix}_{split}.txt", ids)


def _finish_hdf5(out: Path, clouds: Sequence[Cloud], classes: list[str]) -> None:
    import shutil

    import h5py

    for split in ("train", "test"):
        rows = [cloud for cloud in clouds if cloud.split == split]
        for number, begin in enumerate(range(0, len(rows), CLOUDS_A_FILE)):
            part = rows[begin : begin + CLOUDS_A_FILE]
            points = np.stack([np.load(out / cloud.output) for cloud in part])  # (n, P, 3)
            with h5py.File(out / f"ply_data_{split}{number}.h5", "w") as file:
                file["data"] = points
                file["label"] = np.array(
                    [[cloud.label] for cloud in part], np.uint8 if len(classes) < 256 else np.int64
                )
        _write_text(out / f"{split}_ids.txt", [_word(PurePosixPath(cloud.output).stem) for cloud in rows])
    _write_text(out / "shape_names.txt", classes)
    shutil.rmtree(out / ".clouds")


TARGETS = {
    "folder": Target(8192, False, False, _folder_output, "", _finish_folder),
    "modelnet40_normal_resampled": Target(10000, True, True, _modelnet_output, "classes", _finish_modelnet),
    "modelnet40_ply_hdf5": Target(2048, False, True, _hdf5_output, "classes", _finish_hdf5),
    "shapenet": Target(8192, False, True, _shapenet_output, "split", _finish_shapenet),
    "shapenet_render": Target(2048, False, True, _render_output, "", _finish_folder, _render_pictures),
}


def place(target: Target, source: str, name: str, split: str, taken: set[str]) -> str:
    """Return the output of a cloud, numbered where another one has its name already (`a.off` and `a.obj`)."""
    base, ending = target.output(name, PurePosixPath(source).stem, source)
    if ".." in PurePosixPath(base).parts:
        raise UserError(f"{source}: its name leads out of the output folder; rename it")
    # Bytes of a name that are no UTF-8 cannot stand in lists.
    base = re.sub("[\ud800-\udfff]", "_", base)
    output, number = base + ending, 2
    while output.lower() in taken:  # Some file systems do not tell upper from lower case.
        output, number = f"{base}-{number}{ending}", number + 1
    taken.add(output.lower())
    return output
