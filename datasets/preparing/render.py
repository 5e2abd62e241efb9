"""Pictures next to converted clouds, in the layout in which ShapeNet's renderings are published."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.formats.cloud_files import Shape
from datasets.normals import estimate_normals
from utils.errors import UserError
from utils.files import write_atomic

if TYPE_CHECKING:
    from datasets.pictures.rendering import Cameras

MOST_POINTS = 32768  # of a cloud that is drawn
KINDS = ("shaded", "depth")


@dataclass(frozen=True)
class RenderSettings:
    """What pictures depend on besides the shape. Defaults: as many and as large as the published renderings."""

    views: int = 24
    size: int = 137  # pixels a side
    kind: str = "shaded"
    elevation: float = 25.0  # degrees

    def __post_init__(self):
        if self.views < 1:
            raise UserError(f"--views {self.views}: must be at least 1")
        if not 8 <= self.size <= 2048:
            raise UserError(f"--size {self.size}: must be from 8 to 2048 pixels")
        if self.kind not in KINDS:
            raise UserError(f"--kind {self.kind}: is unknown; choose from {', '.join(KINDS)}")
        if not -90 < self.elevation < 90:
            raise UserError(f"--elevation {self.elevation}: must lie between -90 and 90 degrees")


def draw_shape(shape: Shape, up: str, settings: RenderSettings) -> np.ndarray:
    """Draw a mesh, or a cloud, from around its up axis: (views, size, size) uint8."""
    import torch  # Here, because most conversions draw nothing.

    from datasets.pictures.rendering import orbit, render_clouds

    cameras = orbit(settings.views, up_axis=up, elevation=settings.elevation)
    if shape.faces is not None:
        return _draw_mesh(_into_sphere(shape.points), shape.faces, cameras, settings)
    points = shape.points
    points = _into_sphere(points[:: -(-len(points) // MOST_POINTS)])[None]  # (1, n, 3)
    normals = torch.from_numpy(estimate_normals(points)).float() if settings.kind == "shaded" else None
    cloud = torch.from_numpy(points).float()
    return render_clouds(cloud, cameras, settings.size, kind=settings.kind, normals=normals)[0].numpy()


def write_pictures(folder: Path, pictures: np.ndarray) -> None:
    """Write pictures (views, S, S) as `00.png`, `01.png` and so on into a folder, and nothing else may be there."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.png"):  # of an earlier attempt, which may have had more
        left.unlink()
    for view, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        write_atomic(folder / f"{view:02d}.png", lambda file, data=buffer: file.write(data.getvalue()))


def _draw_mesh(vertices: np.ndarray, faces: np.ndarray, cameras: Cameras, settings: RenderSettings) -> np.ndarray:
    import torch

    from datasets.pictures.rendering import render_mesh

    corners = torch.from_numpy(vertices).float(), torch.from_numpy(faces).long()
    return render_mesh(*corners, cameras, settings.size, kind=settings.kind).numpy()


def _into_sphere(points: np.ndarray) -> np.ndarray:
    """Move the middle of the bounding box to the origin and scale into the unit sphere, in double precision."""
    centred = points - (points.min(axis=0) + points.max(axis=0)) / 2
    return centred / (np.linalg.norm(centred, axis=1).max() or 1.0)
