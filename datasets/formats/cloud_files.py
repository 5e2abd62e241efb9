"""Point clouds and meshes in files of their own: NPY, NPZ, text, PLY, PCD; OFF, OBJ, STL, GLB and PLY with faces.

Legend: n points of a file.
"""

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.formats.pcd import read_pcd
from utils.errors import UserError

CLOUDS = (".npy", ".npz", ".txt", ".xyz", ".ply", ".pcd")
MESHES = (".off", ".obj", ".stl", ".glb")
FORMATS = (*CLOUDS, *MESHES)
PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def cloud_files(path: str | Path, *, what: str = "--input", recursive: bool = False) -> list[Path]:
    """Return the files that a path means: itself, or those of a folder that can be read, sorted by name.

    Args:
        what: the flag or key that gave the path, for messages.
        recursive: also those of the folders below it, but for hidden files and folders.

    Raises:
        UserError: there is no such file or folder, or none of a format that can be read.
    """
    path = Path(path)
    known = ", ".join(FORMATS)
    if path.is_dir():
        entries = path.rglob("*") if recursive else path.iterdir()
        files = sorted(entry for entry in entries if entry.suffix.lower() in FORMATS and entry.is_file())
        if recursive:
            files = [file for file in files if not any(part[0] == "." for part in file.relative_to(path).parts)]
        if not files:
            raise UserError(f"{what} {path}: holds no cloud; the formats are {known}")
        return files
    if not path.exists():
        raise UserError(f"{what} {path}: does not exist; give a file ({known}) or a folder of them")
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{what} {path}: is of no format that can be read; convert it to one of {known}")
    return [path]


def read_cloud(path: Path, *, surface_points: int = 8192, seed: int = 0) -> np.ndarray:
    """Read the points of a file as (n, 3) float64: the first three columns, or x, y, z of a PLY or PCD file.

    A mesh (OFF, OBJ, STL, GLB, or PLY with faces) gives `surface_points` points of its surface, uniform by area, drawn from `seed`.

    Raises:
        UserError: the file cannot be read, has no three columns, no points, no faces or area, or values that are not finite.
    """
    suffix = path.suffix.lower()
    if is_mesh(path):
        return sample_mesh(path, surface_points, seed=seed)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".ply": _read_ply, ".pcd": read_pcd}
    try:
        points = readers.get(suffix, _read_text)(path)
        if points.ndim != 2 or points.shape[1] < 3 or not len(points):
            raise ValueError(f"has shape {points.shape}, expected one row of at least x, y, z a point")
        points = np.asarray(points[:, :3], np.float64)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a cloud: {error}") from error
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: point {bad[0]} is not finite ({len(bad)} points are); remove them")
    return points


def sample_mesh(path: Path, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw points of the surface of a mesh, uniform by area: (count, 3) float64. All parts of a scene count.

    Raises:
        UserError: as `sample_surface`.
    """
    return sample_surface(path, count, seed=seed)[0]


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mesh as vertices (n, 3) float64 and triangles (F, 3) int64. All parts of a scene count.

    Raises:
        UserError: the file cannot be read, or has no faces, no area, or vertices that are not finite.
    """
    import trimesh

    try:
        mesh = trimesh.load(path, force="mesh", process=False)
        faces, vertices = np.asarray(mesh.faces), np.asarray(mesh.vertices)
    except Exception as error:  # the readers of trimesh raise whatever a damaged file leads to
        raise UserError(f"{path}: cannot be read as a mesh: {error or type(error).__name__}") from error
    if not len(faces):
        raise UserError(f"{path}: has no faces; give the mesh, or its points as one of {', '.join(CLOUDS)}")
    if not np.isfinite(vertices).all():
        raise UserError(f"{path}: has vertices that are not finite; repair the mesh")
    if not 0 < mesh.area < np.inf:
        raise UserError(f"{path}: its {len(faces)} faces have an area of {mesh.area:g}; repair the mesh")
    return vertices.astype(np.float64), faces.astype(np.int64)


def sample_surface(path: Path, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw points of the surface of a mesh as `sample_mesh`, and the unit normals of their faces: two (count, 3) float64.

    Raises:
        UserError: as `read_mesh`.
    """
    import trimesh

    vertices, faces = read_mesh(path)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points, chosen = trimesh.sample.sample_surface(mesh, count, seed=seed)
    # A face without area, which has no normal, is never drawn.
    corners = vertices[faces[chosen]]  # (count, 3 corners, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(points, np.float64), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def is_mesh(path: Path) -> bool:
    """Say whether a file is read as a mesh: by its ending, or a PLY file by faces in its header."""
    suffix = path.suffix.lower()
    return suffix in MESHES or (suffix == ".ply" and _has_faces(path))


def resample(points: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Bring (n, 3) to (count, 3): a random subset in random order of more points, or all of fewer and random repetitions."""
    draw = np.random.default_rng(seed)
    if len(points) >= count:
        return points[draw.permutation(len(points))[:count]]
    return np.concatenate([points, points[draw.integers(len(points), size=count - len(points))]])


def _has_faces(path: Path) -> bool:
    """Say whether the header of a PLY file announces faces."""
    try:
        with path.open("rb") as file:
            header = file.read(1 << 16).partition(b"end_header")[0]
    except OSError:
        return False  # the reader says why
    return re.search(rb"element\s+face\s+0*[1-9]", header) is not None


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
