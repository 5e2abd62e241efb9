"""Put primitives together into one labelled shape and sample its surface."""

import numpy as np

from datasets.synthetic.primitives import Mesh, box, cushion, cylinder, sphere

BOX = box()


class Sketch:
    """A shape under construction: meshes, each belonging to a named part."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._parts: list[str] = []
        self._count = 0

    def add(self, part: str, mesh: Mesh, size=(1.0, 1.0, 1.0), at=(0.0, 0.0, 0.0), turn: np.ndarray | None = None):
        """Add `mesh` to `part`: stretched by `size`, then turned by the rotation matrix `turn`, then moved to `at`."""
        vertices = mesh.vertices * np.asarray(size, float)
        if turn is not None:
            vertices = vertices @ turn.T
        self._vertices.append(vertices + np.asarray(at, float))
        self._faces.append(mesh.faces + self._count)
        self._parts.append(part)
        self._count += len(vertices)

    def merge(self, other: "Sketch", *, turned: bool = False) -> None:
        """Add all meshes of `other`, after half a turn about y if `turned`."""
        matrix = turn("y", np.pi if turned else 0.0)
        self._vertices.extend(vertices @ matrix.T for vertices in other._vertices)
        self._faces.extend(faces + self._count for faces in other._faces)
        self._parts.extend(other._parts)
        self._count += other._count

    @property
    def parts(self) -> set[str]:
        """Names of the parts that have at least one mesh."""
        return set(self._parts)

    def sample(
        self, count: int, ids: dict[str, int], pose: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw `count` points uniformly over the surface of the shape under the matrix `pose` (3, 3), det > 0.

        Points are stratified along the accumulated area, which keeps small parts from vanishing by chance.

        Returns:
            points (count, 3), outward unit normals (count, 3), part ids (count,) int16, in random order.
        """
        vertices = np.concatenate(self._vertices) @ pose.T
        triangles = vertices[np.concatenate(self._faces)]  # (F, 3, 3)
        origin, first, second = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
        normals = np.empty_like(first)
        normals[:, 0] = first[:, 1] * second[:, 2] - first[:, 2] * second[:, 1]
        normals[:, 1] = first[:, 2] * second[:, 0] - first[:, 0] * second[:, 2]
        normals[:, 2] = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
        doubled = np.sqrt(np.einsum("ij,ij->i", normals, normals))
        reach = np.cumsum(doubled)
        place = (rng.permutation(count) + rng.random(count)) * (reach[-1] / count)
        chosen = np.minimum(np.searchsorted(reach, place, side="right"), len(reach) - 1)
        u, v = rng.random(count), rng.random(count)
        outside = u + v > 1
        u, v = np.where(outside, 1 - u, u)[:, None], np.where(outside, 1 - v, v)[:, None]
        points = origin[chosen] + u * first[chosen] + v * second[chosen]
        owner = np.repeat([ids[part] for part in self._parts], [len(faces) for faces in self._faces]).astype(np.int16)
        return points, normals[chosen] / doubled[chosen, None], owner[chosen]


def turn(axis: str, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3), right-handed, about the axis "x", "y" or "z" by `angle` in radians."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = np.cos(angle)
    matrix[k, j] = np.sin(angle)
    matrix[j, k] = -np.sin(angle)
    return matrix


def beam(sketch: Sketch, part: str, low, high) -> None:
    """Add the axis-aligned box between the corners `low` and `high`."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    sketch.add(part, BOX, high - low, (low + high) / 2)


def rod(sketch: Sketch, part: str, start, end, radius: float, taper: float = 1.0) -> None:
    """Add a round bar from `start` to `end`; `taper` scales the radius at `end`."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = end - start
    length = np.linalg.norm(along)
    along = along / length
    # Any direction that is not parallel to the bar completes the basis; det stays +1.
    helper = np.eye(3)[np.argmin(np.abs(along))]
    side = np.cross(along, helper)
    side /= np.linalg.norm(side)
    basis = np.stack([side, along, np.cross(side, along)], axis=1)
    sketch.add(part, cylinder(round(taper, 1), 12), (2 * radius, length, 2 * radius), (start + end) / 2, basis)


def legs(sketch: Sketch, part: str, rng: np.random.Generator, style: str, *, width: float, depth: float, height: float):
    """Add what carries a plate of `width` (x) and `depth` (z) whose underside is at `height`; the floor is y = 0.

    Styles: square, round, splayed, panels, sled, pedestal, star.
    """
    thick = rng.uniform(0.02, 0.045)
    x, z = width / 2 - thick, depth / 2 - thick
    if style in ("square", "round", "splayed"):
        spread = rng.uniform(1.05, 1.3) if style == "splayed" else 1.0
        taper = rng.uniform(0.4, 1.0)
        for i in (-1, 1):
            for k in (-1, 1):
                if style == "square":
                    beam(sketch, part, (i * x - thick, 0, k * z - thick), (i * x + thick, height, k * z + thick))
                else:
                    foot = (i * x * spread, 0, k * z * spread)
                    rod(sketch, part, (i * x * 0.92, height, k * z * 0.92), foot, thick, taper)
    elif style == "panels":
        for i in (-1, 1):
            beam(sketch, part, (i * x - thick, 0, -z), (i * x + thick, height, z))
    elif style == "sled":
        for i in (-1, 1):
            for k in (-1, 1):
                rod(sketch, part, (i * x, 0, k * z), (i * x, height, k * z), thick * 0.6)
            rod(sketch, part, (i * x, 0, -z), (i * x, 0, z), thick * 0.6)
    elif style == "pedestal":
        radius = min(width, depth) * rng.uniform(0.25, 0.45)
        sketch.add(part, cylinder(), (2 * radius, 0.04, 2 * radius), (0, 0.02, 0))
        rod(sketch, part, (0, 0.02, 0), (0, height, 0), thick * rng.uniform(1.0, 2.2))
    else:
        rod(sketch, part, (0, 0.08, 0), (0, height, 0), thick * 1.2)
        for angle in np.arange(5) * 2 * np.pi / 5 + rng.uniform(0, 1):
            tip = (np.cos(angle) * width * 0.5, 0.03, np.sin(angle) * width * 0.5)
            rod(sketch, part, (0, 0.1, 0), tip, thick * 0.7, 0.6)
            sketch.add(part, sphere(8), (0.06, 0.06, 0.06), tip)


def plate(sketch: Sketch, part: str, rng: np.random.Generator, style: str, size, at) -> None:
    """Add a flat part of `size` centred at `at`: style square, round (elliptic) or soft (a cushion)."""
    if style == "square":
        sketch.add(part, BOX, size, at)
    elif style == "round":
        sketch.add(part, cylinder(), size, at)
    else:
        sketch.add(part, cushion(rng.uniform(0.25, 0.5)), size, at)
