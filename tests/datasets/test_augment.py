"""Augmentation by kind: what moves, what is shared, and that processes draw for the global batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import transforms as module
from datasets.transforms import augment


@pytest.fixture
def points():
    return torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))


def turned(points, kind, seed=1):
    return augment(points, kind, "y", torch.Generator().manual_seed(seed))


def angles(before, after):
    """Return the angle about y of each cloud, after the scale of each axis, by the points on the axes x and z."""
    mixed = torch.linalg.lstsq(before, after).solution  # (B, 3, 3)
    return torch.atan2(mixed[:, 2, 0], mixed[:, 2, 2]), mixed


@pytest.mark.parametrize(("kind", "shared"), [("batch_rotate", True), ("scale_rotate", False)])
def test_scale_and_rotate(points, kind, shared):
    """Heights are scaled by 0.9 to 1.1, each cloud by its own; the angle is one for the batch, or one a cloud."""
    after = turned(points, kind)
    angle, mixed = angles(points, after)
    heights = mixed[:, 1, 1]
    assert ((heights >= 0.9) & (heights <= 1.1)).all() and len(heights.unique()) == 4
    assert mixed[:, 1, [0, 2]].abs().max() < 1e-5 and mixed[:, [0, 2], 1].abs().max() < 1e-5
    assert (angle.max() - angle.min() < 1e-4) == shared
    assert not torch.allclose(angle, angles(points, turned(points, kind, seed=2))[0])


@pytest.mark.parametrize(
    "kind", ["scale_translate", "scale_translate_rotate", "rotate", "batch_rotate", "scale_rotate"]
)
def test_processes_share_the_draw_of_the_global_batch(points, monkeypatch, kind):
    whole, parts = turned(points, kind), []
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        parts.append(turned(points[2 * rank : 2 * rank + 2], kind))
    assert torch.equal(torch.cat(parts), whole)


def test_none_leaves_points_as_they_are(points):
    assert torch.equal(turned(points, "none"), points)


def test_scale_translate_rotate_is_one_after_the_other(points):
    """`augment.npz`: factors and offsets of all clouds, then the angles, in the published order of the draws.

    The published rotation goes the other way round, which makes no difference to an angle that is drawn uniformly.
    """
    ref = dict(np.load(Path(__file__).parent.parent / "parity" / "data" / "pcp-mae" / "augment.npz"))
    cloud, random = torch.from_numpy(ref["pts"]), np.random.RandomState(int(ref["seed"]))
    scale, offset = (torch.from_numpy(np.stack(part)) for part in zip(*(
        (random.uniform(2 / 3, 3 / 2, 3), random.uniform(-0.2, 0.2, 3)) for _ in cloud
    ), strict=True))  # fmt: skip
    moved = module.scale_translate(cloud, scale=scale, offset=offset)
    np.testing.assert_allclose(moved.numpy(), ref["scale_translate"], atol=1e-6)
    angle = torch.from_numpy(2 * np.pi * random.uniform(size=len(cloud)))
    both = module.rotate(moved, axis="y", angle=-angle)
    np.testing.assert_allclose(both.numpy(), ref["scale_translate_then_rotate"], atol=1e-6)
    alone = 2 * np.pi * np.random.RandomState(int(ref["seed"])).uniform(size=len(cloud))
    alone = module.rotate(cloud, axis="y", angle=-torch.from_numpy(alone))
    np.testing.assert_allclose(alone.numpy(), ref["rotate_only"], atol=1e-6)

    draw = torch.Generator().manual_seed(1)
    first = module.augment(points, "scale_translate", "y", draw)
    expected = module.augment(first, "rotate", "y", draw)
    assert torch.equal(turned(points, "scale_translate_rotate", seed=1), expected)
