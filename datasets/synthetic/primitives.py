"""Triangle meshes of the basic shapes, y up, triangles wound so that normals point outwards.

Each is returned as `Mesh(vertices (V, 3), faces (F, 3))`. Fixed shapes are unit-sized (side or diameter 1, centred) and
kept; `Sketch` stretches and places them.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

SEGMENTS = 20  # around a full turn


class Mesh(NamedTuple):
    """A triangle mesh."""

    vertices: np.ndarray  # (V, 3) float64
    faces: np.ndarray  # (F, 3) int64


BOX_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
     [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip
BOX_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def box(top: tuple[float, float] = (1.0, 1.0), shift: tuple[float, float] = (0.0, 0.0)) -> Mesh:
    """Unit box whose top face is scaled by `top` and moved by `shift`, both along (x, z)."""
    vertices = BOX_CORNERS.copy()
    upper = vertices[:, 1] > 0
    vertices[upper, 0] = vertices[upper, 0] * top[0] + shift[0]
    vertices[upper, 2] = vertices[upper, 2] * top[1] + shift[1]
    return Mesh(vertices, BOX_FACES)


@lru_cache(maxsize=256)
def _grid_faces(rows: int, columns: int, wrap: bool) -> np.ndarray:
    """Triangles of a (rows, columns) grid of vertices, the columns closed into a ring if `wrap`."""
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    right = (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + right, (i + 1) * columns + right, (i + 1) * columns + j
    return np.concatenate([np.stack([a, d, c], -1).reshape(-1, 3), np.stack([a, c, b], -1).reshape(-1, 3)])


@lru_cache(maxsize=64)
def _circle(segments: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def lathe(radius, height, segments: int = SEGMENTS) -> Mesh:
    """Turn the profile `radius` (K,) over `height` (K,) about the y axis; radius 0 at an end closes it.

    Heights that rise give outward normals; a profile that turns back down inside makes a vessel with an inner wall.
    """
    radius, height = np.asarray(radius, float), np.asarray(height, float)
    circle = _circle(segments)
    vertices = np.empty((len(radius), segments, 3))
    vertices[:, :, 0] = radius[:, None] * circle[:, 0]
    vertices[:, :, 1] = height[:, None]
    vertices[:, :, 2] = radius[:, None] * circle[:, 1]
    return Mesh(vertices.reshape(-1, 3), _grid_faces(len(radius), segments, True))


@lru_cache(maxsize=256)
def cylinder(taper: float = 1.0, segments: int = SEGMENTS) -> Mesh:
    """Closed unit cylinder about y; `taper` scales the top radius (0 = cone)."""
    return lathe([0, 0.5, 0.5 * taper, 0], [-0.5, -0.5, 0.5, 0.5], segments)


@lru_cache(maxsize=8)
def sphere(segments: int = SEGMENTS) -> Mesh:
    """Sphere of diameter 1."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    return lathe(0.5 * np.cos(angle), 0.5 * np.sin(angle), segments)


def cushion(roundness: float) -> Mesh:
    """Superellipsoid of diameter 1: roundness 1 is a sphere, towards 0 a box with ever sharper edges."""
    unit = sphere().vertices * 2
    across = np.hypot(unit[:, 0], unit[:, 2])
    safe = np.where(across > 1e-9, across, 1.0)

    def bend(value):
        return np.sign(value) * np.abs(value) ** roundness

    vertices = np.stack(
        [bend(unit[:, 0] / safe) * across**roundness, bend(unit[:, 1]), bend(unit[:, 2] / safe) * across**roundness], -1
    )
    return Mesh(0.5 * vertices, sphere().faces)


def sweep(path, radius, segments: int = 10, closed: bool = False) -> Mesh:
    """Tube of `radius` (scalar or (K,)) along `path` (K, 3); the ends stay open, a closed path makes a ring."""
    path = np.asarray(path, float)
    radius = np.broadcast_to(np.asarray(radius, float), len(path))
    following = np.roll(path, -1, 0) if closed else np.concatenate([path[1:], path[-1:]])
    before = np.roll(path, 1, 0) if closed else np.concatenate([path[:1], path[:-1]])
    tangent = following - before
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    # Paths are nearly planar: the normal of their plane is a steady first direction without twist.
    spread = np.linalg.svd(path - path.mean(0), full_matrices=True)[2]
    first = np.cross(tangent, spread[2])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(first, tangent)
    circle = _circle(segments)
    offset = circle[None, :, :1] * first[:, None] + circle[None, :, 1:] * second[:, None]
    vertices = path[:, None] + radius[:, None, None] * offset  # (K, segments, 3)
    rows = len(path)
    faces = _grid_faces(rows, segments, True)
    if closed:
        faces = _grid_faces(rows + 1, segments, True) % (rows * segments)
    return Mesh(vertices.reshape(-1, 3), faces)


def arc(start: float, end: float, count: int = 12) -> np.ndarray:
    """Points of a unit circle in the x-y plane from angle `start` to `end`: (count, 3)."""
    angle = np.linspace(start, end, count)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], -1)


def torus(thickness: float) -> Mesh:
    """Ring in the x-z plane with ring radius 0.5 and tube radius `thickness`."""
    ring = 0.5 * arc(0, 2 * np.pi, SEGMENTS + 1)[:-1]
    return sweep(ring[:, [0, 2, 1]], thickness, closed=True)


def prism(outline) -> Mesh:
    """Plate of thickness 1 (along y) over a star-shaped `outline` (K, 2) in x-z, counter-clockwise seen from +y."""
    outline = np.asarray(outline, float)
    K = len(outline)
    ring = np.arange(K)
    after = (ring + 1) % K
    centre = outline.mean(0)
    flat = np.concatenate([outline, outline, centre[None], centre[None]])
    level = np.concatenate([np.full(K, 0.5), np.full(K, -0.5), [0.5, -0.5]])
    vertices = np.stack([flat[:, 0], level, flat[:, 1]], -1)
    top = np.stack([np.full(K, 2 * K), ring, after], -1)
    bottom = np.stack([np.full(K, 2 * K + 1), K + after, K + ring], -1)
    side = np.concatenate([np.stack([ring, K + ring, K + after], -1), np.stack([ring, K + after, after], -1)])
    return Mesh(vertices, np.concatenate([top, bottom, side]))
