"""Pictures of clouds and meshes without a display: every point or triangle at once, the nearest surface wins.

Legend: B clouds, N points, V cameras, S pixels a side, F triangles. Shapes lie in the unit sphere; pictures are grey, black where
nothing is, as the renderings that Inter-MAE and CrossPoint were trained on. Equal input gives equal pictures, on any number of threads.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["shaded", "depth"]
VERSION = 1  # raised when pictures change, so that stored ones are made again
MARGIN = 0.95  # share of the picture that the unit sphere takes
AMBIENT = 0.2  # of the light; the rest falls from next to the camera
LIGHT = (0.4, 0.5, 1.0)  # direction to it: right, up, towards the camera
COVER = 2.2  # radius of a point is COVER / sqrt(N): neighbours on a surface overlap
FURTHEST = 0.15  # grey of the far side of the sphere in a depth picture; the near side is 1
AXES = {"x": 0, "y": 1, "z": 2}
PIXELS_AT_ONCE = 1 << 24  # points or triangles times pixels in memory


@dataclass(frozen=True)
class Cameras:
    """Cameras that look at the origin.

    Args:
        axes: (V, 3, 3), rows: right, up, and from the origin to the camera.
        distance: from the origin, above 1, in radii of the unit sphere.
    """

    axes: Tensor
    distance: float

    @property
    def focal(self) -> float:
        """Half the picture's width at distance 1, inverted: the unit sphere just fits, but for the margin."""
        return MARGIN * math.sqrt(self.distance**2 - 1)

    def project(self, points: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Project points (..., 3) to columns and rows (V, ..., 2) in pixels, pixel centres at whole numbers, and depths (V, ...)."""
        flat = points.reshape(-1, 3) @ self.axes.transpose(1, 2)  # (V, n, 3)
        flat = flat.view(len(self.axes), *points.shape)
        depth = self.distance - flat[..., 2]
        place = self.focal * flat[..., :2] / depth.unsqueeze(-1)
        place = torch.stack([place[..., 0] + 1, 1 - place[..., 1]], dim=-1) * size / 2 - 0.5
        return place, depth


def orbit(views: int, *, up_axis: str = "y", elevation: float = 25.0, distance: float = 2.5) -> Cameras:
    """Place cameras around the up axis, evenly spaced, all at one elevation (degrees).

    Raises:
        ValueError: no views, an unknown axis, a camera inside the unit sphere or straight above.
    """
    if views < 1 or up_axis not in AXES or distance <= 1 or abs(elevation) >= 90:
        raise ValueError(
            f"orbit: {views} views about {up_axis!r} at elevation {elevation} and distance {distance}; need at least one view, "
            "an axis x, y or z, an elevation within 90 degrees and a distance above 1"
        )
    azimuth = torch.arange(views, dtype=torch.float64) * 2 * math.pi / views
    height = torch.full_like(azimuth, math.radians(elevation))
    flat = height.cos()
    towards = torch.stack([flat * azimuth.sin(), height.sin(), flat * azimuth.cos()], dim=1)  # (V, 3), y up
    right = torch.stack([azimuth.cos(), torch.zeros_like(azimuth), -azimuth.sin()], dim=1)
    axes = torch.stack([right, torch.linalg.cross(towards, right), towards], dim=1)  # (V, 3, 3)
    return Cameras(axes.roll(AXES[up_axis] - 1, dims=2).float(), distance)


def render_clouds(
    points: Tensor, cameras: Cameras, size: int, *, kind: Kind = "shaded", normals: Tensor | None = None
) -> Tensor:
    """Draw clouds (B, N, 3) as discs that overlap: (B, V, S, S) uint8.

    Args:
        normals: (B, N, 3) unit normals of either sign, for `shaded`.
    """
    if kind == "shaded" and normals is None:
        raise ValueError("render_clouds: shaded pictures need normals; give them or draw depth")
    (B, N, _), V = points.shape, len(cameras.axes)
    pixels = cameras.focal / cameras.distance * size / 2  # of one unit at the origin
    radius = max(COVER / math.sqrt(N) * pixels, 0.5)
    discs = _disc(radius)
    step = max(1, PIXELS_AT_ONCE // (V * N * len(discs)))
    pictures = []
    for begin in range(0, B, step):
        part = points[begin : begin + step].float()
        place, depth = cameras.project(part, size)  # (V, b, N, 2), (V, b, N)
        value = _depth_grey(depth, cameras) if kind == "depth" else _shade(normals[begin : begin + step], cameras)
        cells = place.round().long().unsqueeze(-2) + discs  # (V, b, N, offsets, 2)
        image = torch.arange(V * len(part)).view(V, len(part), 1, 1)
        inside = ((cells >= 0) & (cells < size)).all(-1)
        index = (image * size + cells[..., 1]) * size + cells[..., 0]
        spread = [t.unsqueeze(-1).expand_as(index)[inside] for t in (depth, value)]
        drawn = _nearest(index[inside], *spread, V * len(part) * size * size)
        pictures.append(drawn.view(V, len(part), size, size).transpose(0, 1))
    return torch.cat(pictures)


def render_mesh(vertices: Tensor, faces: Tensor, cameras: Cameras, size: int, *, kind: Kind = "shaded") -> Tensor:
    """Draw a mesh, vertices (n, 3) and triangles (F, 3) int64 seen from either side: (V, S, S) uint8.

    A pixel shows the nearest triangle that covers its centre; depth is exact under perspective.
    """
    V = len(cameras.axes)
    place, depth = cameras.project(vertices.float(), size)  # (V, n, 2), (V, n)
    corners, nearness = place[:, faces].flatten(0, 1), (1 / depth)[:, faces].flatten(0, 1)  # (V*F, 3, 2), (V*F, 3)
    normals = _face_normals(vertices.float(), faces)  # (F, 3)
    shade = _shade(normals.unsqueeze(0), cameras).flatten()  # (V*F,)
    low = corners.amin(1).ceil().clamp(min=0).long()  # (V*F, 2)
    high = corners.amax(1).floor().clamp(max=size - 1).long()
    extent = (high - low + 1).clamp(min=0)  # pixels of the box around each triangle
    count = extent.prod(1)
    drawn = []
    image = torch.arange(V).repeat_interleave(len(faces))
    for chosen in _pieces(count):
        owner = chosen.repeat_interleave(count[chosen])  # one row a triangle and pixel of its box
        first = (count[chosen].cumsum(0) - count[chosen]).repeat_interleave(count[chosen])
        offset = torch.arange(len(owner)) - first
        cell = low[owner] + torch.stack([offset % extent[owner, 0], offset // extent[owner, 0]], dim=1)
        weights = _barycentric(corners[owner], cell.to(corners))  # (rows, 3)
        covered = (weights >= 0).all(1)
        owner, cell, weights = owner[covered], cell[covered], weights[covered]
        at = 1 / (weights * nearness[owner]).sum(1)
        index = (image[owner] * size + cell[:, 1]) * size + cell[:, 0]
        drawn.append((index, at, _depth_grey(at, cameras) if kind == "depth" else shade[owner]))
    index, at, value = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return _nearest(index, at, value, V * size * size).view(V, size, size)


def _nearest(index: Tensor, depth: Tensor, value: Tensor, cells: int) -> Tensor:
    """Give each of `cells` pixels the value of its nearest candidate (of equally near ones the brightest), as uint8."""
    nearest = torch.full((cells,), math.inf).scatter_reduce_(0, index, depth, "amin")
    first = depth == nearest[index]
    grey = torch.zeros(cells).scatter_reduce_(0, index[first], value[first], "amax")
    return (grey.clamp(0, 1) * 255).round().to(torch.uint8)


def _disc(radius: float) -> Tensor:
    """Return the offsets (k, 2) of the pixels whose centres lie within a radius."""
    reach = torch.arange(-int(radius), int(radius) + 1)
    offsets = torch.cartesian_prod(reach, reach)
    return offsets[offsets.square().sum(1) <= radius**2]


def _depth_grey(depth: Tensor, cameras: Cameras) -> Tensor:
    far = (depth - cameras.distance + 1) / 2  # 0 at the near side of the unit sphere, 1 at the far side
    return 1 - (1 - FURTHEST) * far


def _shade(normals: Tensor, cameras: Cameras) -> Tensor:
    """Return how bright surfaces with normals (B, N, 3) are for each camera, (V, B, N); both sides are lit."""
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0) @ cameras.axes  # (V, 3)
    cosine = torch.einsum("bnc,vc->vbn", normals.float(), light).abs()
    return AMBIENT + (1 - AMBIENT) * cosine


def _face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=1)


def _barycentric(corners: Tensor, at: Tensor) -> Tensor:
    """Return the weights (n, 3) of the corners (n, 3, 2) of triangles at points (n, 2); negative outside, NaN without area."""
    a, b, c = corners.unbind(1)

    def cross(u: Tensor, v: Tensor) -> Tensor:
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    area = cross(b - a, c - a)
    weights = torch.stack([cross(b - at, c - at), cross(c - at, a - at), cross(a - at, b - at)], dim=1)
    return weights / area.unsqueeze(1)


def _pieces(count: Tensor):
    """Yield the triangles (indices) that cover a pixel at all, in runs of bounded work."""
    chosen = count.nonzero().squeeze(1)
    if not len(chosen):
        yield chosen
        return
    runs = (count[chosen].cumsum(0) - 1) // PIXELS_AT_ONCE
    yield from chosen.split(torch.unique_consecutive(runs, return_counts=True)[1].tolist())
