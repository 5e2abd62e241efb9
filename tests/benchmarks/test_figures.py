"""Pictures of README and documentation: each has code that draws it, and is there; the canvas; all of them, small."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.figures import FIGURES, trained
from benchmarks.figures.__main__ import main
from benchmarks.figures.canvas import Block, Cell, Photo, block, side_by_side, write
from benchmarks.figures.shapes import GIVEN, shapes

ROOT = Path(__file__).parent.parent.parent
MOST_BYTES = 1_500_000  # of all pictures


def shown() -> set[str]:
    """Return the names of the pictures that README and docs show."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]
    links = [link for page in pages for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]
    assert all(re.fullmatch(r"(docs/|\.\./)?figures/\w+\.png", link) for link in links), links
    return {Path(link).stem for link in links}


def test_pictures_are_those_that_are_drawn_and_shown():
    files = {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert files == {f"{name}.png" for name in FIGURES}
    assert shown() == set(FIGURES)


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "figures").iterdir()) < MOST_BYTES


def test_clouds_are_in_the_order_of_the_categories_and_the_same_again():
    first, again = shapes(["table", "chair"], 2), shapes(["table", "chair"], 2)
    assert [[cloud.category for cloud in row] for row in first] == [["table"] * 2, ["chair"] * 2]
    assert np.array_equal(first[1][1].points, again[1][1].points) and len(first[0][0].given) == GIVEN


def test_cells_stand_where_their_row_and_column_are(tmp_path):
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    red, blue = (np.tile(color, (500, 1)) for color in ((1.0, 0, 0), (0, 0, 1.0)))
    image = block(
        Block([[Cell(points, red), None], [None, Cell(points, blue, "below")]], {0: "title"}, ["a", "b"], ["x", "y"]),
        60,
    )
    path = tmp_path / "a.png"
    assert write(path, side_by_side([image, image], 10)) == path.stat().st_size
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert pixels.shape == (image.height, 2 * image.width + 10, 3)
    left = pixels[:, : image.width]
    red_at = np.argwhere(left[..., 0] - left[..., 2] > 80).mean(0)  # row, column
    blue_at = np.argwhere(left[..., 2] - left[..., 0] > 80).mean(0)
    assert (blue_at - red_at > 50).all()
    assert abs(blue_at[1] - (image.width - 30)) < 10


def test_a_photo_stands_among_cells():
    points, red = np.random.default_rng(0).normal(size=(500, 3)), np.tile((1.0, 0, 0), (500, 1))
    image = np.asarray(
        block(Block([[Cell(points, red), Photo(Image.new("RGB", (9, 9), "black"), "black")]]), 80)
    ).astype(int)
    assert (image[20:60, 90:150] == 0).all() and (image[:, 80] == 255).all()
    assert image[20:60, 20:60, 0].mean() > 150 > image[20:60, 20:60, 1].mean()


def test_a_run_calls_after_each_epoch_and_difficulty_is_drawn(monkeypatch):
    monkeypatch.setattr(trained, "CLOUDS", 32)
    monkeypatch.setattr(trained, "BATCH", 16)
    seen = []
    model, guide = trained.pre_train("gm3d", 2, after=lambda epoch, model: seen.append((epoch, model.training)))
    assert seen == [(0, False), (1, False)] and set(guide.maps()) == {0, 1}
    clouds = [row[0] for row in shapes(trained.SHOWN[:2], 1)]
    for cell in trained._difficulty(clouds, model):
        # Every patch has a rank of its own.
        assert cell.colors.shape == (2048, 3) and len(np.unique(cell.colors, axis=0)) == trained.PATCHES


def test_unknown_names_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["poster", "--out", str(tmp_path)])
    assert "poster: no such picture; choose from overview" in capsys.readouterr().err


@pytest.mark.slow
def test_all_pictures_are_drawn_and_are_the_same_again(tmp_path):
    main(["--side", "24", "--out", str(tmp_path)])
    drawn = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(drawn) == set(FIGURES)
    for name in drawn:
        assert len(np.unique(np.asarray(Image.open(tmp_path / f"{name}.png")))) > 20, name
    main(["overview", "map", "parts", "--side", "24", "--out", str(tmp_path)])
    assert [
        name for name in ("overview", "map", "parts") if (tmp_path / f"{name}.png").read_bytes() != drawn[name]
    ] == []
