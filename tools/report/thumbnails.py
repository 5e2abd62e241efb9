"""Pictures inside the page: one image, rows of images with captions, and a matrix of numbers as an image."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from tools.report.clouds import HEIGHT_SCALE, TO_SCREEN, VALUE_SCALE, scale_colors
from tools.report.markup import escape
from tools.report.splat import draw


def picture(image: np.ndarray, *, side: int, alt: str) -> str:
    """Return an image (S, S) grey or (S, S, 3), uint8, as HTML, `side` pixels wide on the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    style = "image-rendering:pixelated;border-radius:4px"
    return (
        f'<img src="data:image/png;base64,{data}" width="{side}" height="{side}" alt="{escape(alt)}" style="{style}">'
    )


def cloud_picture(points: np.ndarray, up_axis: str, size: int = 120) -> np.ndarray:
    """Draw a cloud (n, 3) as the gallery does: (size, size, 3) uint8."""
    upright = np.asarray(points, np.float32) @ TO_SCREEN[up_axis].T
    upright = upright - (upright.min(0) + upright.max(0)) / 2
    upright /= max(float(np.linalg.norm(upright, axis=1).max()), 1e-9)
    heights = upright[:, 1]
    colors = scale_colors(HEIGHT_SCALE, (heights - heights.min()) / max(float(np.ptp(heights)), 1e-6))
    return draw(upright, colors, size)


def picture_rows(rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return rows of (image as HTML, caption)."""
    cells = lambda row: "".join(  # noqa: E731
        f'<td style="padding:4px;text-align:center">{image}<br><small>{escape(caption)}</small></td>'
        for image, caption in row
    )
    body = "".join(f"<tr>{cells(row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table class="plain">{body}</table></div>'


def matrix_picture(values: np.ndarray, *, low: float, high: float, side: int, alt: str) -> str:
    """Return a square matrix as an image, one cell a number, dark = `low`, light = `high`."""
    shares = (np.asarray(values, np.float64) - low) / max(high - low, 1e-9)
    colors = scale_colors(VALUE_SCALE, shares.ravel()).reshape(*values.shape, 3)
    return picture(colors.round().astype(np.uint8), side=side, alt=alt)
