"""Point clouds and meshes in files of their own: NPY, NPZ, text, PLY, PCD; OFF, OBJ, STL, GLB and PLY with faces.

The one way in for files of strangers: every format is read in double precision, missing points are left out and counted, and whatever
a reader meets is one message with the file, the cause and a remedy.

Legend: n points of a file, F triangles of a mesh.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from datasets.formats.arrays import load_npy, load_npz
from datasets.formats.meshes import READERS as MESH_READERS
from datasets.formats.pcd import read_pcd
from datasets.formats.ply import read_ply
from datasets.formats.points import LARGEST, Notes, as_rows, settle
from datasets.formats.text import holds_numbers, read_text_cloud
from utils.errors import UserError, printable
from utils.reading import check_file, explain_read, reading

TEXTS = (".txt", ".xyz", ".csv", ".asc", ".pts")
MAYBE_TEXTS = (".txt", ".csv", ".asc")  # endings that files for people have too
CLOUDS = (".npy", ".npz", *TEXTS, ".ply", ".pcd")
MESHES = tuple(MESH_READERS)
FORMATS = (*CLOUDS, *MESHES)
SHOWN = 20  # bad files in a list

_LOG = logging.getLogger("m2ae.data")


@dataclass(frozen=True)
class Shape:
    """What a file holds: points, or the vertices and triangles of a mesh; no NaN, no infinity, an extent."""

    points: np.ndarray  # (n, 3) float64
    faces: np.ndarray | None = None  # (F, 3) int64
    kept: np.ndarray | None = None  # (rows of the file,) bool, where some points are missing: which rows are `points`

    @cached_property
    def _crosses(self) -> np.ndarray:
        corners = self.points[self.faces]  # (F, 3 corners, 3)
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1])

    @cached_property
    def areas(self) -> np.ndarray:
        """Return the area of each triangle, (F,)."""
        return np.sqrt((self._crosses**2).sum(axis=1)) / 2

    def sample(self, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw points of the surface, uniform by area, and the unit normals of their faces: two (count, 3) float64.

        A face is drawn by its area, then a point of its parallelogram, which is mirrored into the triangle where it lies outside.
        """
        draw = np.random.default_rng(seed).random
        total = np.cumsum(self.areas)
        chosen = np.searchsorted(total, draw(count) * total[-1])
        corners = self.points[self.faces[chosen]]  # (count, 3 corners, 3)
        sides = corners[:, 1:] - corners[:, :1]
        along = draw((count, 2, 1))
        outside = along.sum(axis=1).reshape(-1) > 1.0
        along[outside] = np.abs(along[outside] - 1.0)
        # A face without area, which has no normal, is never drawn.
        normals = np.cross(sides[:, 0], sides[:, 1])
        return (sides * along).sum(axis=1) + corners[:, 0], normals / np.linalg.norm(normals, axis=1, keepdims=True)


def cloud_files(path: str | Path, *, what: str = "--input", recursive: bool = False) -> list[Path]:
    """Return the files that a path means: itself, or those of a folder that can be read, sorted by name; links are followed.

    Hidden files, and text files without numbers such as a README, are passed over in folders.

    Args:
        what: the flag or key that gave the path, for messages.
        recursive: also those of the folders below it.

    Raises:
        UserError: there is no such file or folder, none of a format that can be read, or a folder that may not be read.
    """
    path = Path(path)
    known = ", ".join(FORMATS)
    if path.is_dir():
        files = _own(sorted(_walk(path, what, recursive)))
        if not files:
            deeper = (
                ""
                if recursive
                else next(
                    (f"; there are some below it, in {_shown(file.parent)}" for file in _walk(path, what, True)), ""
                )
            )
            raise UserError(f"{what} {_shown(path)}: holds no cloud{deeper}; the formats are {known}")
        return files
    if not os.path.lexists(path):
        raise UserError(f"{what} {_shown(path)}: does not exist; give a file ({known}) or a folder of them")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{what} {_shown(path)}: is of no format that can be read; convert it to one of {known}")
    return [path]


def has_format(path: Path) -> bool:
    """Say whether the name of a file is that of a cloud or mesh, and not hidden."""
    return path.suffix.lower() in FORMATS and not path.name.startswith(".")


def _walk(folder: Path, what: str, recursive: bool) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{what} {_shown(error.filename)}: {explain_read(error)}") from error

    seen = set()
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.stat(current)
        if (place.st_dev, place.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (path for path in (Path(current, name) for name in files) if has_format(path))


def _own(files: Iterable[Path]) -> list[Path]:
    """Leave out text files that hold no numbers: notes to people, lists of labels."""
    kept, notes = [], []
    for file in files:
        (kept if is_cloud(file) else notes).append(file)
    if notes and kept:
        _LOG.warning(
            "%s: no points in it, passed over%s", _shown(notes[0]), f", as {len(notes) - 1} more" if notes[1:] else ""
        )
    return kept


def is_cloud(path: Path) -> bool:
    """Say whether a file of a known ending may be a cloud: text files without numbers are notes to people, or labels."""
    if path.suffix.lower() not in MAYBE_TEXTS:
        return True
    try:
        check_file(path)
        return holds_numbers(path)
    except (OSError, UserError, ValueError):
        return True  # the reader says what is wrong


def read_shape(path: Path, notes: Notes | None = None) -> Shape:
    """Read a file: the first three columns, x, y, z of a PLY or PCD file, or a mesh. Missing points (NaN, infinite) are left out.

    A mesh without faces is a cloud.

    Args:
        notes: collects what is to be said about the file; without it that is logged at once.

    Raises:
        UserError: the file cannot be read, holds no points, or none in several places; a mesh has no area or is cut short.
    """
    own = Notes() if notes is None else notes
    suffix = path.suffix.lower()
    mesh = suffix in MESHES
    with reading(path, "a mesh" if mesh else "a cloud"):
        if mesh:
            points, faces = MESH_READERS[suffix](path, own)
        elif suffix == ".ply":
            points, faces = read_ply(path)
        else:
            npy = partial(load_npy, what="a cloud")
            readers: dict[str, Callable[[Path], Any]] = {".npy": npy, ".npz": load_npz, ".pcd": read_pcd}
            points = readers[suffix](path) if suffix in readers else read_text_cloud(path, own)
            points, faces = as_rows(points), None
        if not len(points):
            raise ValueError("holds no points")
    if mesh and not len(faces):
        own.add(path, "meshes without faces; their vertices are the points", f"{len(points):,} points")
        faces = None
    if faces is None:
        points, kept = settle(path, points, own)
        shape = Shape(points, kept=kept)
    else:
        shape = _checked_mesh(path, points, faces)
    if notes is None:
        own.tell()
    return shape


def _checked_mesh(path: Path, points: np.ndarray, faces: np.ndarray) -> Shape:
    where = _shown(path)
    if not len(faces):
        raise UserError(f"{where}: has no faces; give the mesh, or its points as one of {', '.join(CLOUDS)}")
    wrong = np.flatnonzero(((faces < 0) | (faces >= len(points))).any(axis=1))
    if len(wrong):
        raise UserError(
            f"{where}: triangle {wrong[0]} has the vertices {faces[wrong[0]].tolist()}, and there are 0 to {len(points) - 1}; "
            "repair the mesh"
        )
    if not (np.abs(points) <= LARGEST).all():
        raise UserError(f"{where}: has vertices that are not finite; repair the mesh")
    shape = Shape(np.asarray(points, np.float64), faces)
    area = shape.areas.sum()
    if not 0 < area < np.inf:
        raise UserError(f"{where}: its {len(faces)} faces have an area of {area:g}; repair the mesh")
    return shape


def read_cloud(path: Path, *, surface_points: int = 8192, seed: int = 0, notes: Notes | None = None) -> np.ndarray:
    """Read the points of a file as (n, 3) float64; of a mesh `surface_points` points of its surface, drawn from `seed`.

    Raises:
        UserError: as `read_shape`.
    """
    shape = read_shape(path, notes)
    return shape.points if shape.faces is None else shape.sample(surface_points, seed=seed)[0]


def sample_mesh(path: Path, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw points of the surface of a mesh, uniform by area: (count, 3) float64. All parts of a scene count.

    Raises:
        UserError: as `read_mesh`.
    """
    return Shape(*read_mesh(path)).sample(count, seed=seed)[0]


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mesh as vertices (n, 3) float64 and triangles (F, 3) int64. All parts of a scene count.

    Raises:
        UserError: as `read_shape`, or the file has no faces.
    """
    shape = read_shape(path)
    if shape.faces is None:
        raise UserError(f"{_shown(path)}: has no faces; give the mesh, or its points as one of {', '.join(CLOUDS)}")
    return shape.points, shape.faces


def resample(points: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Bring (n, 3) to (count, 3): a random subset in random order of more points, or all of fewer and random repetitions."""
    draw = np.random.default_rng(seed)
    if len(points) >= count:
        return points[draw.permutation(len(points))[:count]]
    return np.concatenate([points, points[draw.integers(len(points), size=count - len(points))]])


class BadFiles:
    """Files that cannot be read: the first one ends the command, or with `--skip_bad` all are listed at the end."""

    def __init__(self, skip: bool):
        self.skip, self.messages = skip, []

    def add(self, error: UserError) -> None:
        """Note a file that could not be read; raises the error where such files are not skipped."""
        if not self.skip:
            raise UserError(f"{error} (--skip_bad passes over such files)") from error
        self.messages.append(str(error))

    def tell(self, total: int) -> None:
        """Log the list.

        Raises:
            UserError: all of the `total` files are bad.
        """
        for line in bad_lines(self.messages):
            _LOG.warning("%s", line)
        if self.messages and len(self.messages) == total:
            raise UserError(f"none of the {total:,} files can be read; the first: {self.messages[0]}")


def bad_lines(messages: Sequence[str]) -> list[str]:
    """Return the lines that list bad files, the first ones of many."""
    lines = [f"bad file: {message}" for message in messages[:SHOWN]]
    if len(messages) > SHOWN:
        lines.append(f"and {len(messages) - SHOWN:,} more bad files")
    return lines


def _shown(path: str | Path | None) -> str:
    return printable(path)
