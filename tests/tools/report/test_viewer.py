"""The gallery: one frame for the clouds of a row, compact packing, values, and its figure."""

import base64
import re

import numpy as np
import pytest

from tools.report import splat
from tools.report.clouds import MAX_POINTS, prepare, prepare_all
from tools.report.figure import gallery_figure
from tools.report.page import GalleryItem, write_report
from tools.report.viewer import _pack_row, gallery_section


def cloud(count: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


@pytest.mark.parametrize(("axis", "up"), [("x", (1, 0, 0)), ("y", (0, 1, 0)), ("z", (0, 0, 1))])
def test_up_axis_points_up_and_nothing_is_mirrored(axis, up):
    frame = np.concatenate([np.eye(3), -np.eye(3)]) * 2.0
    (turned,) = prepare(GalleryItem("a", {"input": frame}, axis)).clouds
    order = np.random.default_rng(0).permutation(6)
    places = np.empty((6, 3))
    places[order] = turned.points
    assert places[list(up).index(1)] == pytest.approx([0, 1, 0])
    assert np.linalg.det(places[:3]) == pytest.approx(1)


def test_clouds_of_a_row_share_the_frame_of_the_first():
    base = cloud() * 10 + 5
    row = prepare(GalleryItem("a", {"input": base, "rebuilt": base + np.array([0, 3, 0])}))
    first, second = (c.points for c in row.clouds)
    assert np.linalg.norm(first, axis=1).max() <= 1 + 1e-6
    extent = np.linalg.norm(base - (base.min(0) + base.max(0)) / 2, axis=1).max()
    assert second - first == pytest.approx(np.broadcast_to([0, 3 / extent, 0], first.shape), abs=1e-5)


def test_packing_is_exact_to_a_pixel_even_with_an_outlier():
    base = cloud(500)
    far = np.concatenate([base, [[1e30, 0, 0]]]).astype(np.float32)
    row = prepare(GalleryItem("a", {"input": base, "rebuilt": far}))
    packed = _pack_row(row)
    for entry, source in zip(packed["clouds"], row.clouds, strict=True):
        grid = np.frombuffer(base64.b64decode(entry["xyz"]), "<i2").reshape(-1, 3)
        assert grid * packed["unit"] == pytest.approx(source.points, abs=1e-3)


def test_points_that_clouds_of_a_row_share_are_packed_once():
    points = cloud(500)
    clouds = {"true": points, "other": cloud(500, 1), "predicted": points}
    row = prepare(GalleryItem("a", clouds, values={"true": points[:, 0], "predicted": points[:, 1]}))
    first, other, same = _pack_row(row)["clouds"]
    assert "xyz" in first and "xyz" in other and same["same"] == 0 and "xyz" not in same
    assert same["values"] != first["values"]


def test_points_that_are_not_finite_are_left_out_and_counted():
    broken = cloud()
    broken[3, 1] = np.nan
    row = prepare(GalleryItem("a", {"input": broken}))
    assert (len(row.clouds[0].points), row.clouds[0].total, row.clouds[0].dropped) == (49, 50, 1)
    assert "50, 1 not finite" in gallery_section([row]).body


def test_large_and_empty_clouds():
    row = prepare(GalleryItem("a", {"input": cloud(MAX_POINTS + 9), "visible": np.zeros((0, 3))}))
    assert [len(c.points) for c in row.clouds] == [MAX_POINTS, 0]
    assert "8,192 of 8,201" in gallery_section([row]).body
    empty = prepare(GalleryItem("b", {"visible": np.zeros((0, 3)), "one": np.ones((1, 3))}))
    gallery_figure([row, empty, prepare(GalleryItem("c", {}))])


def test_values_follow_their_points():
    points = cloud()
    row = prepare(GalleryItem("a", {"input": points}, values={"input": points[:, 1]}))
    (drawn,) = row.clouds
    assert (np.argsort(drawn.values, kind="stable") == np.argsort(drawn.values)).all()
    assert np.corrcoef(drawn.values, drawn.points[:, 1])[0, 1] > 0.999
    assert row.value_range == (points[:, 1].min(), points[:, 1].max())


def test_frames_share_one_range_and_follow_their_points():
    points = cloud()
    frames = {"input": [("epoch 0", points[:, 0]), ("epoch 1", 3 * points[:, 1])]}
    row = prepare(GalleryItem("a", {"input": points, "other": points}, frames=frames, value_name="difficulty"))
    drawn, other = row.clouds
    assert list(drawn.frames) == ["epoch 0", "epoch 1"] and not other.frames and other.values is None
    assert row.value_range == pytest.approx((3 * points[:, 1].min(), 3 * points[:, 1].max()))
    width = row.value_range[1] - row.value_range[0]
    values = drawn.frames["epoch 0"] * width / 255 + row.value_range[0]
    assert np.corrcoef(values, drawn.points[:, 0])[0, 1] > 0.999 and np.abs(values).max() < 1.05
    assert (drawn.values == drawn.frames["epoch 1"]).all()
    body = gallery_section([row]).body
    assert 'id="view-frame" min="0" max="1" step="1" value="1"' in body and "epoch 0" in body
    with pytest.raises(ValueError, match=r"'chair 3'.*\(5,\) values for the 50 points of 'input' in frame 'x'"):
        prepare(GalleryItem("chair 3", {"input": points}, frames={"input": [("x", np.zeros(5))]}))


def test_a_page_of_few_clouds_keeps_more_points():
    big, small = cloud(MAX_POINTS * 3), cloud(9)
    (one,) = prepare_all([GalleryItem("scan", {"input": big})])
    many = prepare_all([GalleryItem("scan", {"input": big})] * 200)
    assert len(one.clouds[0].points) == len(big) and len(many[0].clouds[0].points) == MAX_POINTS
    # Small clouds take their own points alone from those of a large one.
    mixed = prepare_all([GalleryItem("scan", {"input": big}), *[GalleryItem("b", {"input": small})] * 200])
    assert len(mixed[0].clouds[0].points) == len(big)
    assert gallery_figure([one]) is not None


def test_only_the_categories_in_use_are_listed():
    row = prepare(GalleryItem("a", {"input": cloud()}, values={"input": np.full(50, 1)}, legend=["leg", "seat", "arm"]))
    body = gallery_section([row]).body
    assert "seat" in body and "arm" not in body and 'value="value"' in body


def test_one_legend_of_heights_for_all_rows():
    rows = [prepare(GalleryItem("a", {"input": cloud(50, seed)})) for seed in (0, 0, 1)]
    same, differ = (gallery_section(some).body for some in (rows[:2], rows))
    assert same.count("by-height") == 1 and differ.count("by-height") == 4
    low, high = rows[2].height_range
    assert f"height {low:.3g} to {high:.3g}<" in differ and "lowest<i" in differ


def test_equal_counts_are_offered_when_a_cloud_is_denser():
    denser = prepare(GalleryItem("a", {"input": cloud(50), "rebuilt": cloud(100)}))
    sparser = prepare(GalleryItem("a", {"input": cloud(50), "visible": cloud(20)}))
    assert ["view-equal" in gallery_section([row]).body for row in (denser, sparser)] == [True, False]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"clouds": {"input": np.zeros((4, 2))}}, r"'input' has shape \(4, 2\)"),
        ({"clouds": {"input": np.zeros((4, 3))}, "up_axis": "w"}, "up_axis='w'"),
        ({"clouds": {"input": np.zeros((4, 3))}, "values": {"output": np.zeros(4)}}, "not among its clouds"),
        ({"clouds": {"input": np.zeros((4, 3))}, "values": {"input": np.zeros(5)}}, "4 points"),
        ({"clouds": {"input": np.zeros((1, 3))}, "values": {"input": np.ones(1, int)}, "legend": ["a"]}, "1 legend"),
    ],
)
def test_bad_items_name_the_item(kwargs, message):
    with pytest.raises(ValueError, match=f"(?s)'chair 3'.*{message}"):
        prepare(GalleryItem("chair 3", **kwargs))


def test_report_of_a_full_gallery_is_small(tmp_path):
    names = ("input", "visible", "rebuilt")
    items = [GalleryItem(f"cloud {i}", {name: cloud(2048, i) for name in names}) for i in range(24)]
    rows = [prepare(entry) for entry in items]
    assert len(gallery_section(rows).body) < 2_500_000
    path = write_report(tmp_path, config={}, gallery=items[:2])
    assert path.stat().st_size < 250_000


def test_drawing_hides_what_is_behind():
    behind, front = np.array([[0, 0, -0.5]]), np.array([[0, 0, 0.5]])
    to_scene = splat.view(np.eye(3, dtype=np.float32))  # rows: where each axis goes; its transpose undoes the view
    points = np.concatenate([front, behind]) @ to_scene.T
    image = splat.draw(points.astype(np.float32), np.array([[255.0, 0, 0], [0, 0, 255.0]]), 101)
    red, _, blue = image[50, 50].astype(int)
    assert red > 150 and blue < 120
    assert (image[0] == 255).all()


def test_drawing_respects_up():
    image = splat.draw(np.array([[0, 0.9, 0]], np.float32), np.zeros((1, 3)), 100)
    rows = np.flatnonzero((image < 200).any(axis=(1, 2)))
    assert len(rows) and rows.max() < 50


def test_values_are_called_by_their_name():
    rows = [
        prepare(GalleryItem("a", {"input": cloud()}, values={"input": cloud()[:, 0]}, value_name="hardness <b>")),
        prepare(GalleryItem("b", {"input": cloud()})),
    ]
    body = gallery_section(rows).body
    assert '<option value="value">hardness &lt;b&gt;</option>' in body and re.search(
        "hardness &lt;b&gt;: <span>-0", body
    )
    assert "Rows without hardness &lt;b&gt; are coloured by height." in body
    assert "Rows without" not in gallery_section(rows[:1]).body


def test_a_view_holds_all_clouds_of_a_row_but_not_an_outlier():
    base = cloud(1000)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    near, far = np.concatenate([base, [[9, 0, 0]]]), base * 1.25
    fits = [prepare(GalleryItem("a", {"input": base, "rebuilt": other})).fit for other in (base, near, far, base * 9)]
    assert fits[:2] == [1, 1] and fits[2] == pytest.approx(1 / 1.25, rel=0.05) and fits[3] == pytest.approx(1 / 1.6)
