"""Farthest point sampling: hand-worked cases, rules and errors."""

import pytest
import torch

from extensions import fps, gather

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def line(*positions: float) -> torch.Tensor:
    """Return one cloud (1, N, 3) on the x axis."""
    return torch.tensor([[[p, 0.0, 0.0] for p in positions]])


@pytest.mark.parametrize("device", DEVICES)
def test_hand_worked_line(device):
    # From 0 the farthest is 10 (index 3); then 4 has squared distance min(16, 36), 1 has 1, 9 has 1.
    points = line(0, 1, 4, 10, 9).to(device)
    assert fps(points, 4).tolist() == [[0, 3, 2, 1]]


@pytest.mark.parametrize("device", DEVICES)
def test_tie_rules_differ_as_documented(device):
    # Indices 1 to 7 are equally far. T = 8, so bit-reversed slots of 1..7 are 4, 2, 6, 1, 5, 3, 7: index 4 wins.
    points = line(1, *[3] * 7).to(device)
    assert fps(points, 2).tolist() == [[0, 1]]
    assert fps(points, 2, tie_break="pointnet2").tolist() == [[0, 4]]
    assert fps(points, 2, skip_near_origin=True).tolist() == [[0, 4]]
    assert fps(points, 2, skip_near_origin=True, tie_break="lowest").tolist() == [[0, 1]]


@pytest.mark.parametrize("device", DEVICES)
def test_near_origin_points_are_left_out(device):
    points = line(0.01, 0.03, 1.0, 0.0, 2.0).to(device)  # 0.03 and 0 lie within sqrt(1e-3) = 0.0316
    assert fps(points, 5, skip_near_origin=True, tie_break="lowest").tolist() == [[0, 4, 2, 2, 2]]
    assert fps(points[:, :2], 3, skip_near_origin=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_more_samples_than_points_repeat(device):
    assert fps(line(0, 2, 1).to(device), 6).tolist() == [[0, 1, 2, 0, 0, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("skip", [False, True])
def test_prefix_and_uniqueness(device, skip):
    points = torch.randn(3, 400, 3, generator=torch.Generator().manual_seed(1)).to(device)
    longest = fps(points, 200, skip_near_origin=skip)
    for samples in (1, 10, 15, 16, 60, 199):
        assert torch.equal(fps(points, samples, skip_near_origin=skip), longest[:, :samples])
    assert all(len(set(row)) == 200 for row in longest.tolist())
    nested = fps(gather(points, longest), 50, skip_near_origin=skip)
    assert torch.equal(nested, torch.arange(50, device=device).expand(3, -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fps(torch.zeros(1, 4, 3), 0), "fps: num_samples=0 must be at least 1"),
        (lambda: fps(torch.zeros(1, 0, 3), 1), "fps: points has zero points"),
        (lambda: fps(torch.zeros(1, 4, 2), 1), r"fps: points must have shape \(B, N, 3\), got \(1, 4, 2\)"),
        (lambda: fps(torch.zeros(4, 3), 1), "fps: points must have shape"),
        (lambda: fps(torch.zeros(1, 4, 3).long(), 1), "fps: points must be float16, .* got torch.int64"),
        (lambda: fps(torch.zeros(1, 4, 3), 1, tie_break="first"), "fps: tie_break='first' is not one of"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
