"""A table of pictures: titles on top, names at the side, grey and coloured pictures, gaps."""

import numpy as np

from tools.report.pictures import picture_figure, picture_table

ROWS = [
    ("first", {"depth": np.eye(4), "cloud": np.zeros((4, 4, 3), np.uint8)}),
    ("second <b>", {"cloud": np.full((4, 4, 3), 255, np.uint8)}),
]


def test_titles_names_and_gaps():
    axes = np.reshape(picture_figure(ROWS).axes, (2, 2))
    assert [[cell.get_title() for cell in line] for line in axes] == [["depth", "cloud"], ["", ""]]
    assert [line[0].get_ylabel() for line in axes] == ["first", "second <b>"]
    assert [[len(cell.images) for cell in line] for line in axes] == [[1, 1], [0, 1]]
    assert axes[0, 0].images[0].get_clim() == (0.0, 1.0)  # not stretched to what a picture holds


def test_what_is_shown_is_said_and_escaped():
    element = picture_table(ROWS, alt='a "picture" <i>')
    assert 'alt="a &quot;picture&quot; &lt;i&gt;"' in element and "data:image/png;base64,iVBOR" in element
