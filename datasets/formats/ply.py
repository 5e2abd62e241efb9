"""Write point clouds as PLY files, which MeshLab, CloudCompare, Blender and Open3D open."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.files import write_atomic

PLY_TYPES = {"f4": "float", "u1": "uchar", "i4": "int"}


def write_ply(
    path: str | Path,
    points: np.ndarray,
    *,
    normals: np.ndarray | None = None,
    colors: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    comments: Sequence[str] = (),
    binary: bool = True,
) -> None:
    """Write a PLY file atomically, binary little-endian or ASCII.

    Args:
        points: (n, 3), written as float32 x, y, z.
        normals: (n, 3), written as float32 nx, ny, nz.
        colors: (n, 3), integers in 0-255 or floats in 0-1, written as bytes red, green, blue.
        labels: (n,) integers, written as int32 `label`.
        comments: lines of the header for people to read.

    Raises:
        ValueError: if a shape or a range does not fit.
        UserError: if the file cannot be written.
    """
    points = _checked("points", points, (len(points), 3))
    count = len(points)
    columns = _columns(("x", "y", "z"), points, "f4")
    if normals is not None:
        columns |= _columns(("nx", "ny", "nz"), _checked("normals", normals, (count, 3)), "f4")
    if colors is not None:
        columns |= _columns(("red", "green", "blue"), _bytes(_checked("colors", colors, (count, 3))), "u1")
    if labels is not None:
        labels = _checked("labels", labels, (count,))
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"write_ply: labels have type {labels.dtype}, expected integers")
        columns["label"] = ("i4", labels)
    vertices = np.empty(count, [(name, "<" + kind) for name, (kind, _) in columns.items()])
    for name, (_, values) in columns.items():
        vertices[name] = values
    header = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", f"element vertex {count}"]
    header[2:2] = [f"comment {' '.join(line.split())}" for line in comments]
    header += [f"property {PLY_TYPES[kind]} {name}" for name, (kind, _) in columns.items()]
    body = vertices.tobytes() if binary else _lines(vertices)
    data = "\n".join([*header, "end_header", ""]).encode("ascii", "replace") + body
    write_atomic(path, lambda file: file.write(data))


def _checked(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != shape:
        raise ValueError(f"write_ply: {name} have shape {array.shape}, expected {shape}")
    return array


def _columns(names: tuple[str, ...], values: np.ndarray, kind: str) -> dict:
    return {name: (kind, values[:, index]) for index, name in enumerate(names)}


def _bytes(colors: np.ndarray) -> np.ndarray:
    """Return integers in 0-255; floats are shares of full brightness."""
    limit = 255 if np.issubdtype(colors.dtype, np.integer) else 1
    if colors.size and not (colors.min() >= 0 and colors.max() <= limit):
        raise ValueError(f"write_ply: colors of type {colors.dtype} must lie in 0-{limit}")
    return colors if limit == 255 else np.rint(colors * 255)


def _lines(vertices: np.ndarray) -> bytes:
    """Write one line a point; nine digits carry every float32 exactly."""

    def word(value: float | int) -> str:
        return f"{value:.9g}" if isinstance(value, float) else str(value)

    return "".join(" ".join(map(word, row)) + "\n" for row in vertices.tolist()).encode("ascii")
