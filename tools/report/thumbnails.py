"""Pictures inside the page: one image, rows of images with captions, and a matrix of numbers as an image."""

import base64
import io
from collections.abc import Sequence

import numpy as np

from tools.report.clouds import HEIGHT_SCALE, VALUE_SCALE, scale_colors, unit_frame
from tools.report.markup import escape, short
from tools.report.splat import draw


def picture(image: np.ndarray, *, side: int, alt: str) -> str:
    """Return an image (S, S) grey or (S, S, 3), uint8, as HTML, `side` pixels wide on the page."""
    style = "image-rendering:pixelated;border-radius:4px"
    return f'<img src="{data_address(image)}" width="{side}" height="{side}" alt="{escape(alt)}" style="{style}">'


def data_address(image: np.ndarray) -> str:
    """Return an image (S, S) grey, (S, S, 3) or (S, S, 4), uint8, as a `data:` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def cloud_picture(points: np.ndarray, up_axis: str, size: int = 120) -> np.ndarray:
    """Draw a cloud (n, 3) as the gallery does: (size, size, 3) uint8."""
    upright = unit_frame(points, points, up_axis)
    heights = upright[:, 1]
    colors = scale_colors(HEIGHT_SCALE, (heights - heights.min()) / max(float(np.ptp(heights)), 1e-6))
    return draw(upright, colors, size)


def picture_rows(rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Return rows of (image as HTML, caption)."""
    lines = ("".join(f"<td>{image}{escape(caption)}</td>" for image, caption in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="panel"><div class="scroll" tabindex="0"><table class="tiles">{body}</table></div></div>'


def matrix_picture(
    values: np.ndarray, *, low: float, high: float, side: int, alt: str, axes: tuple[str, str] = ("row", "column")
) -> str:
    """Return a square matrix as an image with the names of its axes and its scale, one cell a number, dark = `low`."""
    shares = (np.asarray(values, np.float64) - low) / max(high - low, 1e-9)
    colors = scale_colors(VALUE_SCALE, shares.ravel()).reshape(*values.shape, 3)
    image = picture(colors.round().astype(np.uint8), side=side, alt=alt)
    ramp = f'<p class="ramp across">{short(low, 3)}<i style="--ramp:{",".join(VALUE_SCALE)}"></i>{short(high, 3)}</p>'
    return (
        f'<div class="matrix"><span class="up">{escape(axes[0])}</span>{image}'
        f'<span class="across">{escape(axes[1])}</span>{ramp}</div>'
    )
