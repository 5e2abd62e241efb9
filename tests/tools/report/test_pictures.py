"""Pictures of the page: tables with names as text, grey and coloured pictures, gaps; matrices with axes and scale."""

import base64
import io
import re

import numpy as np
from PIL import Image

from tools.report.pictures import picture_table
from tools.report.thumbnails import matrix_picture, picture_rows

ROWS = [
    ("first", {"depth": np.eye(4), "cloud": np.zeros((4, 4, 3), np.uint8)}),
    ("second <b>", {"cloud": np.full((4, 4, 3), 255, np.uint8)}),
]


def images(page: str) -> list[np.ndarray]:
    codes = re.findall(r"data:image/png;base64,([^\"]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in codes]


def test_titles_names_and_gaps():
    page = picture_table(ROWS, alt="a picture")
    assert re.findall(r'<th scope="(\w+)">([^<]+)</th>', page) == [
        ("col", "depth"), ("col", "cloud"), ("row", "first"), ("row", "second &lt;b&gt;"),
    ]  # fmt: skip
    assert page.count("<td></td>") == 2  # the corner, and the picture that the second row lacks
    depth, black, white = images(page)
    assert np.array_equal(depth, 255 * np.eye(4)) and not black.any() and (white == 255).all()


def test_grey_pictures_are_not_stretched():
    (image,) = images(picture_table([("a", {"depth": np.full((2, 2), 0.5)})], alt=""))
    assert (image == 128).all()


def test_what_is_shown_is_said_and_escaped():
    page = picture_table(ROWS, alt='a "picture" <i>')
    assert 'alt="first, depth: a &quot;picture&quot; &lt;i&gt;"' in page
    assert "<b>" not in picture_rows([[("<img>", "<b>")]])


def test_a_matrix_has_axes_and_a_scale():
    page = matrix_picture(np.eye(2), low=0, high=0.25, side=24, alt="x", axes=("image <i>", "cloud"))
    assert "image &lt;i&gt;" in page and ">cloud<" in page
    assert re.search(r'class="ramp across">0<i style="--ramp:#440154[^"]+"></i>0.25<', page)
