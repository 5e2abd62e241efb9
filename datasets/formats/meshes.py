"""Read meshes: OFF, OBJ, STL, GLB. A mesh never opens another file: materials and textures are left out.

Legend: n vertices, F triangles.
"""

import io
import re
from pathlib import Path

import numpy as np

from datasets.formats.points import Notes
from datasets.formats.rows import parse_rows, polygon_groups
from utils.reading import read_bytes

Mesh = tuple[np.ndarray, np.ndarray]  # vertices (n, 3) float64, triangles (F, 3) int64
UNUSED_SHARE = 0.1  # of the vertices that no face uses; more of them in an OBJ file look like a file that is cut short
_OFF_WORD = re.compile(rb"\s*(ST)?(C)?(N)?(4)?(n)?OFF(\s+BINARY)?", re.IGNORECASE)


def read_off(path: Path, notes: Notes) -> Mesh:
    """Read an OFF file: with or without the word OFF, in any case, with colours and normals of vertices and faces left out.

    Raises:
        ValueError: it holds fewer vertices or faces than its first line says.
    """
    data = read_bytes(path)
    head = re.sub(rb"^(\s*#[^\n]*\n)+", b"", data)
    word = _OFF_WORD.match(head)
    if word and word.group(6):
        raise ValueError("is a binary OFF file, which is not read; save it as text")
    if word and (word.group(4) or word.group(5)):
        raise ValueError("has four coordinates or a free number of them; save it as plain OFF")
    rows = parse_rows(head[word.end() :] if word else head)
    if not len(rows) or rows.counts[0] not in (2, 3):
        raise ValueError("its first line does not say how many vertices and faces it has; is it an OFF file?")
    number, faces = (int(value) for value in rows.values[:2])
    if min(number, faces) < 0 or len(rows) < 1 + number + faces:
        held = f"{min(number, len(rows) - 1)} and {max(len(rows) - 1 - number, 0)}"
        raise ValueError(f"its first line says {number} vertices and {faces} faces, it holds {held}; is it cut short?")
    corners = rows.part(1 + number, 1 + number + faces)
    sizes = corners.values[corners.starts]
    if (sizes != np.floor(sizes)).any() or sizes.min(initial=0) < 0:
        raise ValueError("a face has a number of corners that is none")
    return rows.part(1, 1 + number).columns(3), polygon_groups(corners, sizes.astype(np.int64), 1)


def read_obj(path: Path, notes: Notes) -> Mesh:
    """Read the vertices and faces of an OBJ file; numbers of textures, normals and materials are left out.

    Raises:
        ValueError: a vertex or face is malformed.
    """
    data = read_bytes(path).replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\\\n", b" ")
    if b"\0" in data:
        raise ValueError("holds binary data, not text")
    lines = [line.lstrip() for line in data.split(b"\n")]
    vertices = parse_rows(b"\n".join([line[2:] for line in lines if line[:2] in (b"v ", b"v\t")])).columns(3)
    faces = b"\n".join([line[2:] for line in lines if line[:2] in (b"f ", b"f\t")])
    rows = parse_rows(re.sub(rb"/[^\s]*", b"", faces))
    short = np.flatnonzero(rows.counts < 3)
    if len(short):
        raise ValueError(f"face {short[0]} has {rows.counts[short[0]]} corners; is it cut short?")
    triangles = polygon_groups(rows, rows.counts, 0)
    # Numbers begin at 1; negative ones count back from the vertices so far, which are all of them where these come first.
    if triangles.min(initial=1) < 0:
        triangles = _from_the_end(lines, triangles, rows)
    if (triangles == 0).any():
        raise ValueError("a face has the vertex 0; numbers begin at 1")
    triangles = triangles - 1
    if len(triangles):
        unused = len(vertices) - len(np.unique(triangles))
        if unused > UNUSED_SHARE * len(vertices):
            notes.add(
                path, "vertices that no face uses; is the file cut short?", f"{unused:,} of {len(vertices):,} vertices"
            )
    return vertices, triangles


def _from_the_end(lines: list[bytes], triangles: np.ndarray, rows) -> np.ndarray:
    """Resolve negative numbers of an OBJ file: -1 is the last vertex before the line of the face."""
    before, count = [], 0
    for line in lines:
        if line[:2] in (b"v ", b"v\t"):
            count += 1
        elif line[:2] in (b"f ", b"f\t") and line[2:].strip():
            before.append(count)
    values = rows.values.copy()
    seen = np.repeat(np.array(before, np.int64), rows.counts)
    values = np.where(values < 0, values + seen + 1, values)
    return polygon_groups(type(rows)(values, rows.starts, rows.counts), rows.counts, 0)


def read_stl(path: Path, notes: Notes) -> Mesh:
    """Read an STL file, binary or text.

    Raises:
        ValueError: it holds fewer triangles than it says, or a triangle of other than three corners.
    """
    data = read_bytes(path)
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    text = data[:512].lstrip()[:5].lower() == b"solid" and b"facet" in data[:4096].lower()
    if len(data) == 84 + 50 * count or not (text or data[:512].lstrip()[:5].lower() == b"solid"):
        if count < 0 or len(data) < 84 + 50 * count:
            raise ValueError(
                f"its header says {max(count, 0)} triangles, its {len(data)} bytes hold fewer; is it cut short?"
            )
        kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("extra", "<u2")])
        corners = np.frombuffer(data, kind, count, 84)["corners"].astype(np.float64).reshape(-1, 3)
        return corners, np.arange(len(corners)).reshape(-1, 3)
    if re.search(rb"endsolid[^\n]*\s*$", data[-1024:], re.IGNORECASE) is None:
        raise ValueError("does not end with endsolid; is it cut short?")
    rows = parse_rows(
        b"\n".join(re.findall(rb"^\s*vertex\s([^\n]*)$", data.replace(b"\r", b"\n"), re.IGNORECASE | re.MULTILINE))
    )
    corners = rows.columns(3) if len(rows) else np.empty((0, 3))
    if len(corners) % 3:
        raise ValueError(f"has {len(corners)} corners, which make no triangles; is it cut short?")
    return corners, np.arange(len(corners)).reshape(-1, 3)


def read_glb(path: Path, notes: Notes) -> Mesh:
    """Read the meshes of a GLB file, all parts of its scene, or its points where it has no mesh.

    Raises:
        ValueError: it refers to another file, or is malformed.
    """
    import trimesh

    data = read_bytes(path)
    if data[:4] != b"glTF":
        raise ValueError("is no GLB file: it does not start with glTF")
    if int.from_bytes(data[8:12], "little") > len(data):
        raise ValueError(
            f"says that it has {int.from_bytes(data[8:12], 'little')} bytes, and has {len(data)}; it is cut short"
        )
    scene = trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False, skip_materials=True)
    parts = list(scene.dump())
    meshes = [part for part in parts if isinstance(part, trimesh.Trimesh)]
    clouds = [np.asarray(part.vertices) for part in parts if isinstance(part, trimesh.PointCloud)]
    if not meshes:
        return np.concatenate([*clouds, np.empty((0, 3))]), np.empty((0, 3), np.int64)
    if clouds:
        notes.add(path, "points beside the mesh were left out", f"{sum(map(len, clouds)):,} points")
    mesh = trimesh.util.concatenate(meshes)
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)


READERS = {".off": read_off, ".obj": read_obj, ".stl": read_stl, ".glb": read_glb}
