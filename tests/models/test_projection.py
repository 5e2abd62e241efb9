"""Depth maps and lifting beyond parity: hand-worked pixels, odd clouds, and the dense formulation."""

import pytest
import torch
import torch.nn.functional as F

from models.images.projection import VIEWS, draw_depth, find_pixels, fit_frame, lift, turn_to_views


def views_of(points, size=32):
    return fit_frame(turn_to_views(points), size)


@pytest.fixture
def points():
    return torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.5, 0.1])


def test_hand_worked_image():
    """Two points 10 cells apart in an image of 13 pixels: rows 1 and 11, a 5 x 5 square around each, the border folded in."""
    points = torch.tensor([[[0.0, 0.0, 2.0], [10.0, 0.0, -1.0]]])
    frame = views_of(points, 13)
    assert frame.cell[0] == 1 and frame.corner[0].tolist() == [0, 0]
    pixels = find_pixels(points, frame)[0]
    assert pixels.tolist() == [[1, 6], [11, 6]]  # cell + 1 along the long side, the middle along the short one
    image = draw_depth(points, frame)[0]
    expected = torch.zeros(13, 13)
    expected[0:4, 4:9] += 2.0
    expected[0, 4:9] += 2.0  # the row outside the image
    expected[9:13, 4:9] -= 1.0
    expected[12, 4:9] -= 1.0
    torch.testing.assert_close(image, expected.sigmoid())


def test_nearest_depth_hides_what_is_behind():
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 4.0], [40.0, 0.0, 1.0]]])
    frame = views_of(points, 64)
    image = draw_depth(points, frame, "nearest")[0]
    (row, column), _, (far_row, far_column) = find_pixels(points, frame)[0].tolist()
    assert image[row, column] == 1.0  # the nearer of two points
    assert image[far_row, far_column] == pytest.approx(1 - 0.75 * 3 / 4)
    assert image[0, 0] == 0 and image.min() == 0 and image.max() <= 1


def test_views_show_each_pair_of_axes(points):
    turned = turn_to_views(points).view(3, 3, -1, 3)
    for view, axes in enumerate(VIEWS):
        assert torch.equal(turned[view], points[..., list(axes)])
    assert sorted(axes[2] for axes in VIEWS) == [0, 1, 2]


@pytest.mark.parametrize("size, patches, channels", [(224, 14, 5), (64, 4, 3), (224, 16, 1), (70, 5, 2)])
def test_lifting_is_bicubic_enlargement(points, size, patches, channels):
    maps = torch.randn(9, channels, patches, patches, generator=torch.Generator().manual_seed(1))
    pixels = find_pixels(points, views_of(points, size))
    enlarged = F.interpolate(maps, size=(size, size), mode="bicubic", align_corners=False).flatten(2)
    place = pixels[..., 0] * size + pixels[..., 1]
    dense = enlarged.gather(2, place.unsqueeze(1).expand(-1, channels, -1)).transpose(1, 2)
    torch.testing.assert_close(lift(maps, pixels, size), dense, rtol=1e-5, atol=1e-5)


def test_lifting_reads_the_corners_too():
    maps = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    grid = torch.cartesian_prod(torch.arange(32), torch.arange(32)).unsqueeze(0)
    enlarged = F.interpolate(maps, size=(32, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(lift(maps, grid, 32)[0].t().reshape(2, 32, 32), enlarged[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [(1, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("depth", ["signed_sum", "nearest"])
def test_clouds_without_extent(points, scale, depth):
    """Flat clouds, lines and single points: finite images, pixels inside, and in the middle where there is nothing to spread."""
    flat = points * torch.tensor(scale, dtype=torch.float32) + 0.3
    frame = views_of(flat)
    image, pixels = draw_depth(flat, frame, depth), find_pixels(flat, frame)
    assert torch.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert pixels.min() >= 0 and pixels.max() < 32
    if scale == (0, 0, 0):
        assert (pixels == 15).all()
    assert torch.isfinite(lift(torch.ones(9, 1, 4, 4), pixels, 32)).all()


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_tiny_and_huge_clouds_look_alike(points, factor):
    expected = find_pixels(points, views_of(points))
    assert (find_pixels(points * factor, views_of(points * factor)) - expected).abs().max() <= 1


def test_points_outside_the_frame_take_the_border(points):
    frame = views_of(points)
    outside = torch.tensor([[[1e3, -1e3, 1e9]]]).expand(3, 1, 3)
    pixels = find_pixels(outside, frame)
    assert set(pixels.flatten().tolist()) == {0, 31}
    assert torch.isfinite(lift(torch.ones(9, 1, 4, 4), pixels, 32)).all()


def test_bad_arguments(points):
    with pytest.raises(ValueError, match="an image of 3 pixels has no room; use at least 4"):
        views_of(points, 3)
    with pytest.raises(ValueError, match="depth 'sum' is unknown; choose from signed_sum, nearest"):
        draw_depth(points, views_of(points), "sum")
