"""Lay pictures of clouds out in rows with headings and captions, on white; small PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.look.sheets import ramp
from tools.report.clouds import unit_frame
from tools.report.splat import draw
from utils.files import write_atomic

FINER = 2  # a cell is drawn so many times as large, and reduced
PALETTE = 256
LEAST_HEIGHT = 0.45  # of a row of cells, in sides
PHOTO_BORDER = 40  # a side of a photo is so many times as long as its white border is wide
INK, SOFT = "#23304a", "#66728a"
GREY = np.array([0.78, 0.80, 0.83])
HIDDEN = np.array([0.89, 0.45, 0.20])


class Cell(NamedTuple):
    """A cloud with a colour for each point, and a line below it."""

    points: np.ndarray  # (n, 3), y up
    colors: np.ndarray  # (n, 3) in 0-1
    caption: str = ""
    frame: np.ndarray | None = None  # (m, 3), the cloud whose extent is the picture's; default: itself
    ball: float = 0.016  # radius of a ball as a share of the cell
    ink: str = SOFT


class Photo(NamedTuple):
    """An image that stands among clouds as it is, square, and a line below it."""

    image: Image.Image
    caption: str = ""
    ink: str = SOFT


@dataclass
class Block:
    """Cells in rows and columns, with what is above the columns and left of the rows.

    Attributes:
        titles: column -> a title that begins there.
        scale: names of the ends of a colour scale that is drawn at the top right.
    """

    rows: Sequence[Sequence[Cell | Photo | None]]
    titles: Mapping[int, str] = field(default_factory=dict)
    heads: Sequence[str] = ()
    sides: Sequence[str] = ()
    scale: tuple[str, str] | None = None


@cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font in a size, which is the same everywhere."""
    return ImageFont.load_default(size)


def picture(cell: Cell | Photo, side: int) -> Image.Image:
    """Draw a cell."""
    if isinstance(cell, Photo):
        border = side // PHOTO_BORDER
        inner = side - 2 * border
        image = Image.new("RGB", (side, side), "white")
        image.paste(cell.image.resize((inner, inner), Image.Resampling.LANCZOS), (border, border))
        return image
    points = unit_frame(cell.points, cell.points if cell.frame is None else cell.frame, "y")
    image = draw(points, 255 * cell.colors, FINER * side, ball=cell.ball)
    return Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)


def block(content: Block, side: int, text: int | None = None) -> Image.Image:
    """Draw rows of cells, `side` pixels wide, with words of `text` pixels; what is empty above and below a whole row is cut off."""
    text = text or max(9, side // 11)
    left = text * 7 if content.sides else 0
    title, heads = (text * 5 // 2 if content.titles else 0), (text * 2 if content.heads else 0)
    lines = [_line(row, side, text) for row in content.rows]
    size = (left + max(line.width for line in lines), title + heads + sum(line.height for line in lines))
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for column, words in content.titles.items():
        pen.text((column * side + text // 2, text), words, INK, font(text * 5 // 4), anchor="lm")
    if content.scale:
        _draw_scale(image, content.scale, text)
    for column, words in enumerate(content.heads):
        pen.text((left + (column + 0.5) * side, title + heads / 2), words, INK, font(text), anchor="mm")
    top = title + heads
    for number, line in enumerate(lines):
        image.paste(line, (left, top))
        if content.sides:
            pen.multiline_text(
                (text // 2, top + line.height / 2),
                content.sides[number],
                INK,
                font(text),
                anchor="lm",
                spacing=text // 3,
            )
        top += line.height
    return image


def _line(row: Sequence[Cell | Photo | None], side: int, text: int) -> Image.Image:
    """Draw a row of cells with their captions."""
    image = Image.new("RGB", (len(row) * side, side), "white")
    for column, cell in enumerate(row):
        if cell is not None:
            image.paste(picture(cell, side), (column * side, 0))
    image = _trimmed(image, round(LEAST_HEIGHT * side), text // 2) if any(row) else image
    if not any(cell is not None and cell.caption for cell in row):
        return image
    whole = Image.new("RGB", (image.width, image.height + text * 3 // 2), "white")
    whole.paste(image, (0, 0))
    pen = ImageDraw.Draw(whole)
    for column, cell in enumerate(row):
        if cell is not None:
            middle = ((column + 0.5) * side, image.height + text * 0.5)
            pen.text(middle, cell.caption, cell.ink, font(text * 9 // 10), anchor="mm")
    return whole


def _trimmed(image: Image.Image, least: int, border: int) -> Image.Image:
    """Cut off what is white at the top and the bottom, up to a border, and no more than leaves `least` pixels."""
    drawn = np.flatnonzero((np.asarray(image) < 250).any((1, 2)))
    top, bottom = max(0, drawn[0] - border), min(image.height, drawn[-1] + 1 + border)
    lacking = max(0, least - (bottom - top))
    top = max(0, top - lacking // 2)
    return image.crop((0, top, image.width, min(image.height, max(bottom, top + least))))


def _draw_scale(image: Image.Image, ends: tuple[str, str], text: int) -> None:
    """Draw a colour scale with the names of its ends at the top right."""
    pen, wide, high = ImageDraw.Draw(image), text * 9, text
    right = image.width - text // 2
    pen.text((right, text), ends[1], SOFT, font(text), anchor="rm")
    end = round(right - pen.textlength(ends[1], font(text)) - text / 2)
    bar = np.broadcast_to(255 * ramp(np.linspace(0, 1, wide), 0, 1), (high, wide, 3)).round().astype(np.uint8)
    image.paste(Image.fromarray(np.ascontiguousarray(bar)), (end - wide, text - high // 2))
    pen.text((end - wide - text / 2, text), ends[0], SOFT, font(text), anchor="rm")


def side_by_side(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Put images next to each other."""
    return _joined(images, gap, (1, 0))


def stacked(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Put images one below the other."""
    return _joined(images, gap, (0, 1))


def _joined(images: Sequence[Image.Image], gap: int, along: tuple[int, int]) -> Image.Image:
    sizes = np.array([image.size for image in images])
    ends = (sizes + gap).cumsum(0)
    whole = Image.new("RGB", tuple(map(int, np.where(along, ends[-1] - gap, sizes.max(0)))), "white")
    for image, place in zip(images, np.where(along, ends - sizes - gap, 0), strict=True):
        whole.paste(image, tuple(map(int, place)))
    return whole


def write(path: Path, image: Image.Image) -> int:
    """Write an image with a palette of 256 colours as PNG; returns its bytes."""
    small = image.quantize(PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = BytesIO()
    small.save(buffer, "PNG", optimize=True)
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
    return buffer.tell()
