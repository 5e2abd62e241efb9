"""Transforms: hand-worked values, published parity, determinism, nothing in place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.transforms import normalize_unit_sphere, rotate, sample_points, scale_translate

PARITY = Path(__file__).parents[1] / "parity" / "data" / "point-m2ae" / "augment.npz"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scale_translate_matches_the_published_augmentation():
    reference = np.load(PARITY)
    points = torch.from_numpy(reference["points"])
    random = np.random.RandomState(int(reference["numpy_seed"]))
    drawn = [(random.uniform(2 / 3, 3 / 2, 3), random.uniform(-0.2, 0.2, 3)) for _ in points]
    scale, offset = (torch.from_numpy(np.stack(values)) for values in zip(*drawn, strict=True))
    result = scale_translate(points, scale=scale, offset=offset)
    torch.testing.assert_close(result, torch.from_numpy(reference["scale_translate"]), rtol=0, atol=1e-6)


def test_scale_translate_draws_from_the_published_ranges():
    points = torch.ones(4000, 1, 3)
    before = points.clone()
    both = scale_translate(points, generator=seeded())
    offset = scale_translate(points * 0, generator=seeded())
    scale = both - offset
    assert torch.equal(points, before)
    assert 2 / 3 - 1e-5 <= scale.min() < 0.67 and 1.49 < scale.max() <= 1.5 + 1e-5
    assert -0.2 <= offset.min() < -0.199 and 0.199 < offset.max() <= 0.2
    assert scale.std(dim=2).min() > 0  # three factors of their own
    with pytest.raises(ValueError, match="generator"):
        scale_translate(points)
    with pytest.raises(ValueError, match="both scale and offset"):
        scale_translate(points, scale=torch.ones(4000, 3))


@pytest.mark.parametrize(
    ("axis", "start", "end"), [("z", [1, 0, 0], [0, 1, 0]), ("y", [0, 0, 1], [1, 0, 0]), ("x", [0, 1, 0], [0, 0, 1])]
)
def test_rotate_by_a_quarter_turn(axis, start, end):
    points = torch.tensor([[start]], dtype=torch.float32)
    turned = rotate(points, axis=axis, angle=torch.tensor([torch.pi / 2]))
    torch.testing.assert_close(turned, torch.tensor([[end]], dtype=torch.float32), atol=1e-6, rtol=0)


def test_rotate_keeps_norms_and_the_axis():
    points = torch.randn(8, 50, 3, generator=seeded())
    turned = rotate(points, axis="y", generator=seeded(1))
    torch.testing.assert_close(turned.norm(dim=2), points.norm(dim=2))
    assert torch.equal(turned[..., 1], points[..., 1])
    assert not torch.allclose(turned, points)
    with pytest.raises(ValueError, match="axis 'up'"):
        rotate(points, axis="up", generator=seeded())


def test_normalize_unit_sphere():
    points = torch.randn(8, 50, 3, generator=seeded()) * 7 + 3
    result = normalize_unit_sphere(points)
    torch.testing.assert_close(result.mean(dim=1), torch.zeros(8, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.norm(dim=2).amax(dim=1), torch.ones(8))


@pytest.mark.parametrize("value", [0.0, 0.1, -123.4567])
def test_normalize_of_equal_points_is_zero(value):
    assert torch.equal(normalize_unit_sphere(torch.full((2, 77, 3), value)), torch.zeros(2, 77, 3))


def test_sample_points_takes_distinct_points_in_random_order():
    points = torch.arange(500, dtype=torch.float32)[None, :, None].expand(3, -1, 3).contiguous()
    taken = sample_points(points, 200, generator=seeded())
    assert taken.shape == (3, 200, 3)
    for row in taken[:, :, 0]:
        assert len(row.unique()) == 200
        assert not torch.equal(row, row.sort().values)
    assert not torch.equal(taken[0], taken[1])
    assert torch.equal(taken, sample_points(points, 200, generator=seeded()))
    assert not torch.equal(taken, sample_points(points, 200, generator=seeded(1)))
    with pytest.raises(ValueError, match="count=501"):
        sample_points(points, 501, generator=seeded())


def test_sample_points_is_uniform():
    points = torch.arange(10, dtype=torch.float32)[None, :, None].expand(4000, -1, 3)
    counts = torch.bincount(sample_points(points, 3, generator=seeded())[:, 0, 0].long(), minlength=10)
    assert (counts - 400).abs().max() < 5 * 400**0.5


def test_part_segmentation_scales_uniformly_then_shifts():
    """`augment.npz`: one factor a cloud, all of them drawn before all offsets."""
    from datasets.transforms import draw_uniform_scale_offset

    ref = np.load(Path(__file__).parent.parent / "parity" / "data" / "point-mae" / "augment.npz")
    points = torch.from_numpy(ref["pts"])
    random = np.random.RandomState(int(ref["seed"]))
    factors = random.uniform(0.8, 1.25, len(points))
    offsets = random.uniform(-0.1, 0.1, (len(points), 3))
    scale = torch.from_numpy(factors)[:, None].expand(-1, 3)
    moved = scale_translate(points, scale=scale, offset=torch.from_numpy(offsets))
    np.testing.assert_allclose(moved.numpy(), ref["partseg_scale_then_shift"], atol=1e-6)

    scale, offset = draw_uniform_scale_offset(20000, generator=torch.Generator().manual_seed(0))
    assert scale.shape == offset.shape == (20000, 3) and torch.equal(scale[:, 0], scale[:, 2])
    for values, low, high in ((scale, 0.8, 1.25), (offset, -0.1, 0.1)):
        assert low <= values.min() < low + 1e-3 and high - 1e-3 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=5e-3)
