"""A table of pictures in the report: images in a grid, one line a cloud, with names that are text of the page."""

from collections.abc import Mapping, Sequence

import numpy as np

from tools.report.markup import escape
from tools.report.thumbnails import picture

SIDE = 150  # pixels of a picture on the page


def picture_table(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], *, alt: str) -> str:
    """Return a table of pictures.

    Args:
        rows: (name, column title -> picture); a picture is (h, w) in [0, 1], drawn in grey, or (h, w, 3) uint8.
        alt: what a picture shows, for those who do not see it; name and title are added.

    Raises:
        ImportError: Pillow is missing.
    """
    columns = list(dict.fromkeys(title for _, pictures in rows for title in pictures))
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns)
    lines = []
    for name, pictures in rows:
        shown = (
            picture(_pixels(pictures[title]), side=SIDE, alt=f"{name}, {title}: {alt}") if title in pictures else ""
            for title in columns
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{image}</td>" for image in shown)}</tr>')
    table = f'<table class="tiles"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="panel"><div class="scroll" tabindex="0">{table}</div></div>'


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return uint8; grey pictures keep their scale, 0 is black and 1 white."""
    return image if image.ndim == 3 else np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
