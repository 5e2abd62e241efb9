"""Neighbour search and Chamfer distance: hand-worked cases, properties and errors."""

import pytest
import torch

from extensions import ball_query, chamfer_distance, knn, three_nn

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def line(*positions: float) -> torch.Tensor:
    """Return one cloud (1, N, 3) on the x axis."""
    return torch.tensor([[[p, 0.0, 0.0] for p in positions]])


@pytest.mark.parametrize("device", DEVICES)
def test_knn_by_hand(device):
    sqdist, idx = knn(line(1).to(device), line(4, 0, 2, 1, 1).to(device), 5)
    assert idx.tolist() == [[[3, 4, 1, 2, 0]]]
    assert sqdist.tolist() == [[[0, 0, 1, 1, 9]]]


@pytest.mark.parametrize("device", DEVICES)
def test_nan_comes_last_and_never_breaks(device):
    support = line(float("nan"), 5, 1, float("nan")).to(device)
    sqdist, idx = knn(line(0).to(device), support, 4)
    assert idx.tolist() == [[[2, 1, 0, 3]]] and sqdist.tolist() == [[[1, 25, float("inf"), float("inf")]]]
    assert three_nn(line(0).to(device), support)[1].tolist() == [[[2, 1, 0]]]
    d1, _, i1, i2 = chamfer_distance(line(0, float("nan")).to(device), support)
    assert i1.tolist() == [[2, 0]] and d1.tolist() == [[1, float("inf")]] and i2.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("device", DEVICES)
def test_three_nn_with_few_support_points(device):
    sqdist, idx = three_nn(line(0, 3).to(device), line(2, 1).to(device))
    assert idx.tolist() == [[[1, 0, 1], [0, 1, 0]]]
    assert sqdist.tolist() == [[[1, 4, float("inf")], [1, 4, float("inf")]]]
    sqdist, idx = three_nn(line(0).to(device), line(2).to(device))
    assert idx.tolist() == [[[0, 0, 0]]] and sqdist.tolist() == [[[4, float("inf"), float("inf")]]]


@pytest.mark.parametrize("device", DEVICES)
def test_the_filling_of_three_nn_has_no_gradient(device):
    query, support = line(0).to(device).requires_grad_(), line(2, 5).to(device).requires_grad_()
    sqdist, _ = three_nn(query, support)
    (sqdist * torch.tensor([1.0, 10.0, 100.0], device=device)).sum().backward()
    assert query.grad[0, :, 0].tolist() == [-104] and support.grad[0, :, 0].tolist() == [4, 100]


@pytest.mark.parametrize("device", DEVICES)
def test_ball_query_by_hand(device):
    support = line(9, 1, 0, 2, 0.5).to(device)
    # Strictly closer than 2, in index order; padded with the first hit; index 0 where nothing is near.
    query = line(0, 20, 9).to(device)
    assert ball_query(query, support, 2.0, 2).tolist() == [[[1, 2], [0, 0], [0, 0]]]
    assert ball_query(query, support, 2.0, 6).tolist() == [[[1, 2, 4, 1, 1, 1], [0] * 6, [0] * 6]]


@pytest.mark.parametrize("device", DEVICES)
def test_chamfer_by_hand(device):
    a, b = line(0, 1, 5).to(device).requires_grad_(), line(1, 1, 7).to(device).requires_grad_()
    d1, d2, i1, i2 = chamfer_distance(a, b)
    assert d1.tolist() == [[1, 0, 4]] and i1.tolist() == [[0, 0, 2]]
    assert d2.tolist() == [[0, 0, 4]] and i2.tolist() == [[1, 1, 2]]
    (d1.sum() + 10 * d2.sum()).backward()
    # Point 0 pulls b[0]; points 5 and 7 pull each other, once per direction.
    assert a.grad[0, :, 0].tolist() == [-2, 0, -44] and b.grad[0, :, 0].tolist() == [2, 0, 44]


@pytest.mark.parametrize("device", DEVICES)
def test_chamfer_symmetric_and_zero_iff_equal(device):
    torch.manual_seed(0)
    a, b = torch.randn(4, 30, 3, device=device), torch.randn(4, 50, 3, device=device)
    d1, d2, i1, i2 = chamfer_distance(a, b)
    e1, e2, j1, j2 = chamfer_distance(b, a)
    assert torch.equal(d1, e2) and torch.equal(d2, e1) and torch.equal(i1, j2) and torch.equal(i2, j1)
    assert d1.min() > 0 and d2.min() > 0
    shuffled = b[:, torch.randperm(50)]
    assert all(d.eq(0).all() for d in chamfer_distance(b, shuffled)[:2])


THREE, FIVE = torch.zeros(2, 3, 3), torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(THREE, FIVE, 99), "k=99 exceeds the 5 support points; lower group_size or sample more points"),
        (lambda: knn(THREE, FIVE, 0), "knn: k=0 must be at least 1"),
        (lambda: knn(THREE, FIVE[:1], 2), "knn: query has batch size 2 but support has 1"),
        (lambda: knn(THREE, FIVE.double(), 2), "knn: query is torch.float32 but support is torch.float64"),
        (lambda: knn(THREE, FIVE[..., :2], 2), r"knn: support must have shape \(B, N, 3\), got \(2, 5, 2\)"),
        (lambda: knn(THREE, FIVE.int(), 2), "knn: support must be float16, .* got torch.int32"),
        (lambda: knn(THREE, FIVE.to("meta"), 2), "knn: query is on cpu but support is on meta; move one of them"),
        (lambda: three_nn(THREE, FIVE[:, :0]), "three_nn: support has zero points"),
        (lambda: ball_query(THREE, FIVE, 0.0, 2), "ball_query: radius=0.0 must be positive and finite"),
        (lambda: ball_query(THREE, FIVE, float("nan"), 2), "ball_query: radius=nan must be positive"),
        (lambda: ball_query(THREE, FIVE, 1.0, 0), "ball_query: k=0 must be at least 1"),
        (lambda: chamfer_distance(THREE[:, :0], FIVE), "chamfer_distance: a has zero points"),
        (lambda: chamfer_distance(THREE, FIVE[:1]), "chamfer_distance: a has batch size 2 but b has 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
