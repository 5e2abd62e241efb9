"""A picture of some clouds of a set as its readers take them, so that anybody sees which way is up."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.formats.cloud_files import read_cloud
from datasets.formats.points import Notes, upright
from utils.errors import UserError, printable
from utils.files import write_atomic

SHOWN = 8  # clouds of the picture, in two rows
MEASURED = 24  # clouds whose extents count
POINTS = 4096  # drawn of each
SIDE, FOOT = 220, 22  # pixels of a cloud, and of the line below it
TURN = 1  # of eight cameras around the up axis: not from the front, so that all three axes show
AXES = "xyz"


def preview(files: Sequence[Path], up: str, picture: Path) -> list[str]:
    """Draw eight of the clouds, turned so that `up` is y, into a PNG file; returns lines to print: extents, and where the picture is.

    Files that cannot be read are passed over.
    """
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(MEASURED, len(files))).astype(int))]
    clouds = []
    for path in chosen:
        try:
            clouds.append((path, upright(read_cloud(path, surface_points=POINTS, notes=Notes()), up)))
        except UserError:  # The conversion has told about it.
            continue
    if not clouds:
        return []
    extents = np.mean([np.ptp(points, axis=0) / np.ptp(points, axis=0).max() for _, points in clouds], axis=0)
    shown = [clouds[i] for i in np.unique(np.linspace(0, len(clouds) - 1, min(SHOWN, len(clouds))).astype(int))]
    _draw(shown, picture)
    sizes = ", ".join(f"{axis} {extent:.2f}" for axis, extent in zip(AXES, extents, strict=True))
    return [
        f"mean extents of {len(clouds)} clouds, the largest of each set to 1: {sizes}; y is up",
        f"{picture}: {len(shown)} clouds as readers take them; if they do not stand upright there, convert again with another --up",
    ]


def _draw(clouds: Sequence[tuple[Path, np.ndarray]], picture: Path) -> None:
    import torch
    from PIL import Image, ImageDraw

    from datasets.pictures.rendering import Cameras, orbit, render_clouds

    around = orbit(8)
    camera = Cameras(around.axes[TURN : TURN + 1], around.distance)
    columns = min(len(clouds), SHOWN // 2)
    rows = -(-len(clouds) // columns)
    sheet = Image.new("L", (columns * SIDE, rows * (SIDE + FOOT)))
    pen = ImageDraw.Draw(sheet)
    for index, (path, points) in enumerate(clouds):
        left, top = index % columns * SIDE, index // columns * (SIDE + FOOT)
        centred = points - (points.min(axis=0) + points.max(axis=0)) / 2
        sphere = (centred / (np.linalg.norm(centred, axis=1).max() or 1.0))[:POINTS]
        image = render_clouds(torch.from_numpy(sphere).float()[None], camera, SIDE, kind="depth")[0, 0]
        sheet.paste(Image.fromarray(image.numpy()), (left, top))
        name = printable("/".join(path.parts[-2:])).encode("ascii", "replace").decode()
        pen.text((left + 6, top + SIDE + 4), name[-34:], fill=220)
        pen.line([(left + 12, top + 44), (left + 12, top + 20)], fill=255, width=2)
        pen.polygon([(left + 12, top + 12), (left + 7, top + 22), (left + 17, top + 22)], fill=255)
        pen.text((left + 20, top + 14), "y", fill=255)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(picture, lambda file: file.write(buffer.getvalue()))
