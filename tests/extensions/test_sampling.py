"""Farthest point sampling: hand-worked cases, rules and errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions import fps, gather
from extensions.m2ae_ops.reference import sampling as reference

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


def lattice(batch: int, count: int, steps: int, size: float, seed: int = 0) -> torch.Tensor:
    """Return points (batch, count, 3) of a coarse lattice around the origin: ties, duplicates, points near the origin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-steps, steps + 1, (batch, count, 3), generator=generator) * size


def scale_by_scale(points: torch.Tensor, num_samples: list[int], skip: bool, tie_break: str) -> list[torch.Tensor]:
    """Return the samples of every scale from runs of the reference of their own."""
    chosen = []
    for samples in num_samples:
        chosen.append(reference.fps(points, samples, skip, tie_break))
        points = gather(points, chosen[-1])
    return chosen


RULES = list(itertools.product([False, True], ["lowest", "pointnet2"]))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 31, 33, 97, 300, 700])),
    percent=st.tuples(st.integers(1, 120), st.integers(1, 120), st.integers(1, 120)),
    steps=st.sampled_from([0, 1, 2, 5, 10**6]),
    size=st.sampled_from([0.01, 0.02, 1.0, 1e-22]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_nested_samples_are_those_of_every_scale(device, shape, percent, steps, size, dtype):
    points = lattice(*shape, steps, size, seed=sum(percent)).to(device, dtype)
    num_samples = [shape[1]]
    for p in percent:
        num_samples.append(max(1, num_samples[-1] * p // 100))
    for skip, tie_break in RULES:
        ours = fps(points, num_samples[1:], skip_near_origin=skip, tie_break=tie_break)
        expected = scale_by_scale(points, num_samples[1:], skip, tie_break)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_nested_with_a_tie_that_a_smaller_cloud_breaks_otherwise(device):
    # From index 0, indices 1, 2 and 3 are equally far. Eight points prefer slots 0 4 2 6 1 5 3 7, so 2 comes before 1 and 3.
    # Among the four chosen ones (0, 2, 1, 3) positions 1, 2, 3 tie again and the order is 0 2 1 3: position 2 is taken first.
    points = torch.zeros(1, 8, 3, device=device)
    points[0, 1, 0] = points[0, 2, 1] = points[0, 3, 2] = 1.0
    chosen = fps(points, [4, 4, 2], tie_break="pointnet2")
    assert [idx.tolist() for idx in chosen] == [[[0, 2, 1, 3]], [[0, 2, 1, 3]], [[0, 2]]]


@pytest.mark.parametrize("device", DEVICES)
def test_nested_samples_of_a_pyramid(device):
    points = torch.randn(3, 1024, 3, generator=torch.Generator().manual_seed(2)).to(device)
    points[1, 0] = 0.001  # the first centre lies near the origin: chosen all the same, at every scale
    points[2, :] = points[2, :1]  # nothing but repeats
    chosen = fps(points, [512, 256, 64], skip_near_origin=True)
    expected = scale_by_scale(points, [512, 256, 64], True, "pointnet2")
    assert all(torch.equal(a, b) for a, b in zip(chosen, expected, strict=True))
    assert torch.equal(chosen[1][:2], torch.arange(256, device=device).expand(2, -1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "samples"), [(4097, 130), (6000, 60), (131072, 60)])
def test_large_clouds_agree_with_the_reference(device, count, samples):
    generator = torch.Generator().manual_seed(count)
    uneven = torch.randn(1, count, 3, generator=generator) * torch.tensor([1.0, 0.3, 0.01])
    uneven[0, count // 2 :: 5] = uneven[0, 3]
    uneven[0, 7::1001] = torch.inf
    for points, (skip, tie_break) in itertools.product([uneven, lattice(1, count, 9, 0.05)], RULES[1:3]):
        points = points.to(device)
        ours = fps(points, samples, skip_near_origin=skip, tie_break=tie_break)
        assert torch.equal(ours, reference.fps(points, samples, skip, tie_break))


def sample_all(clouds: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return single and nested samples of each set of clouds."""
    found = []
    for points in clouds:
        found += [fps(points, 70), *fps(points, [60, 20], skip_near_origin=True)]
    return found


def test_instruction_sets_agree(lesser_processor):
    clouds = [lattice(3, 500, 3, 0.1), torch.randn(3, 500, 3).double(), torch.randn(2, 5000, 3)]
    found, expected = lesser_processor(sample_all, clouds), sample_all(clouds)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_thread_count_changes_no_sample():
    points = torch.cat([torch.randn(4, 400, 3), lattice(5, 400, 2, 0.1)])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(torch.cat([fps(points, 90), *fps(points, [80, 30])], 1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_nested_shapes_without_data():
    shapes = [idx.shape for idx in fps(torch.empty(2, 30, 3, device="meta"), [9, 4])]
    assert shapes == [(2, 9), (2, 4)]
    torch.library.opcheck(torch.ops.m2ae.fps_nested, (torch.randn(2, 30, 3), [9, 4], True, "pointnet2"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fps(torch.zeros(1, 4, 3), 0), "fps: num_samples=0 must be at least 1"),
        (lambda: fps(torch.zeros(1, 0, 3), 1), "fps: points has zero points"),
        (lambda: fps(torch.zeros(1, 4, 2), 1), r"fps: points must have shape \(B, N, 3\), got \(1, 4, 2\)"),
        (lambda: fps(torch.zeros(4, 3), 1), "fps: points must have shape"),
        (lambda: fps(torch.zeros(1, 4, 3).long(), 1), "fps: points must be float16, .* got torch.int64"),
        (lambda: fps(torch.zeros(1, 4, 3), 1, tie_break="first"), "fps: tie_break='first' is not one of"),
        (lambda: fps(torch.zeros(1, 4, 3), []), r"fps: num_samples=\[\] must hold one number"),
        (lambda: fps(torch.zeros(1, 4, 3), [2, 0]), "fps: num_samples=0 must be at least 1"),
        (lambda: fps(torch.zeros(1, 4, 2), [2]), r"fps: points must have shape \(B, N, 3\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
