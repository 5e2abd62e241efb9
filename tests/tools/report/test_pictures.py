"""Pictures of the page: rows of images, those of a gallery, matrices with axes and scale."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tools.report.clouds import GalleryItem, prepare
from tools.report.figure import CELL, gallery_figure
from tools.report.thumbnails import matrix_picture, picture_rows
from tools.report.viewer import gallery_section


def images(page: str) -> list[np.ndarray]:
    codes = re.findall(r"data:image/png;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in codes]


def item(name="first <b>", clouds=("a",), **pictures):
    points = np.random.default_rng(0).normal(size=(20, 3))
    return prepare(GalleryItem(name, dict.fromkeys(clouds, points), pictures=pictures))


def test_pictures_of_a_row_stand_in_front_of_its_clouds():
    photo = np.zeros((2, 2, 3), np.uint8)
    body = gallery_section([item(depth=np.full((4, 4), 0.5), photo=photo)]).body
    grey, black = images(body)
    assert (grey == 128).all() and grey.shape == (4, 4) and not black.any()  # grey pictures are not stretched
    assert 'alt="first &lt;b&gt;, depth"' in body and body.index("<b>photo</b>") < body.index("<canvas")
    assert 'class="item"' in body and 'class="item wide"' in gallery_section([item(clouds="abcd", photo=photo)]).body


def test_names_are_below_where_clouds_share_none():
    shared = [item(clouds=("input", "rebuilt"), depth=np.eye(3)) for _ in range(2)]
    nearest = [item(clouds=(f"{row}. near", f"{row}. far", f"{row}. farther")) for row in range(3)]
    figures = [gallery_figure(rows) for rows in (shared, nearest)]
    for figure in figures:
        assert figure.get_size_inches()[0] == pytest.approx(0.35 + 3 * CELL) and len(figure.images) in (6, 9)
    texts = [text.get_text() for text in figures[1].texts]
    assert "2. farther" in texts and texts.count("0. near") == 1 and "20 points" not in texts
    assert [text.get_text() for text in figures[0].texts].count("depth") == 1


def test_captions_are_escaped():
    assert "<b>" not in picture_rows([[("<img>", "<b>")]])


def test_a_matrix_has_axes_and_a_scale():
    page = matrix_picture(np.eye(2), low=0, high=0.25, side=24, alt="x", axes=("image <i>", "cloud"))
    assert "image &lt;i&gt;" in page and ">cloud<" in page
    assert re.search(r'class="ramp across">0<i style="--ramp:#440154[^"]+"></i>0.25<', page)
