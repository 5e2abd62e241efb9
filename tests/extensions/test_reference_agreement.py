"""Compiled kernels and PyTorch reference agree to the bit, on ordinary and on degenerate clouds."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions import ball_query, chamfer_distance, fps, gather, group, knn, three_interpolate, three_nn
from extensions.m2ae_ops import backend
from extensions.m2ae_ops.reference import chamfer as reference_chamfer
from extensions.m2ae_ops.reference import indexing as reference_indexing
from extensions.m2ae_ops.reference import neighbors as reference_neighbors
from extensions.m2ae_ops.reference import sampling as reference_sampling

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = ["random", "small", "grid", "duplicates", "equal", "zero", "line", "nan", "nan_first", "huge"]
WIDE_KINDS = [*KINDS, "overflow", "tiny", "offset", "outlier", "far_outlier", "few_finite"]


def make_cloud(kind: str, batch: int, count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return points (batch, count, 3) of a kind; "small" lies around the near-origin radius."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(batch, count, 3))
    if kind == "small":
        points = rng.uniform(-0.06, 0.06, size=points.shape)
    elif kind == "grid":
        cells = np.stack(np.unravel_index(rng.permutation(batch * count) % 125, (5, 5, 5)), -1)
        points = cells / 4.0 - 0.5
    elif kind == "duplicates":
        points = points[:, rng.integers(0, max(1, count // 3), count)]
    elif kind == "equal":
        points = np.broadcast_to(points[:, :1], points.shape)
    elif kind == "zero":
        points = np.zeros_like(points)
    elif kind == "line":
        points = points * [1.0, 0.0, 0.0]
    elif kind == "nan":
        points[:, count // 2 :: 7, 1] = np.nan
        points[:, count // 3 :: 11, 2] = np.inf
    elif kind == "nan_first":
        points[:, 0] = np.nan
    elif kind == "huge":
        points = points * 1e18
    elif kind == "overflow":
        points = points * 1e30
    elif kind == "tiny":
        points = points * 1e-30
    elif kind == "offset":
        points = points * 1e-3 + 1000
    elif kind == "outlier":
        points[:, count // 2] = 1e30
    elif kind == "far_outlier":
        points[:, count // 2] = 1e4
    elif kind == "few_finite":
        points[:, rng.permutation(count)[: -max(1, count // 20)]] = np.nan
    return torch.tensor(points.reshape(batch, count, 3), dtype=dtype)


def assert_same(ours, expected) -> None:
    ours, expected = (x if isinstance(x, tuple) else (x,) for x in (ours, expected))
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype and one.is_contiguous()
        assert torch.equal(one, other)


def test_the_library_is_what_runs_here():
    if not backend().startswith("compiled"):
        pytest.skip(f"no compiled library: {backend()}; the reference is compared with itself")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("m2ae::fps", "CPU")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    count=st.sampled_from([1, 2, 3, 15, 16, 17, 64, 100, 216, 333, 700]),
    percent=st.sampled_from([1, 10, 50, 100, 120]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_fps(device, kind, batch, count, percent, dtype):
    points = make_cloud(kind, batch, count, count, dtype).to(device)
    samples = max(1, percent * count // 100)
    for skip, tie_break in itertools.product([False, True], ["lowest", "pointnet2"]):
        ours = fps(points, samples, skip_near_origin=skip, tie_break=tie_break)
        assert_same(ours, reference_sampling.fps(points, samples, skip, tie_break))
        assert ours.min() >= 0 and ours.max() < count and (ours[:, 0] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    queries=st.sampled_from([1, 5, 33, 70]),
    count=st.sampled_from([1, 2, 7, 16, 65, 200, 520]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_neighbors(device, kind, queries, count, dtype):
    support = make_cloud(kind, 2, count, 3, dtype).to(device)
    query = torch.cat([support[:, : queries // 2], make_cloud(kind, 2, queries, 4, dtype).to(device)], 1)
    for k in (1, 2, 8, 16, 20, 32, 64, 100, 128, 300):
        assert_same(knn(query, support, min(k, count)), reference_neighbors.knn(query, support, min(k, count)))
        assert_same(ball_query(query, support, 0.5, k), reference_neighbors.ball_query(query, support, 0.5, k))
    assert_same(three_nn(query, support), reference_neighbors.three_nn(query, support))
    assert_same(chamfer_distance(query, support), reference_chamfer.chamfer(query, support))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    pairs=st.sampled_from([1, 3, 4, 16, 19, 33]),
    n=st.sampled_from([1, 2, 5, 8, 31, 32, 64, 65]),
    m=st.sampled_from([1, 3, 16, 33, 48, 64]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_chamfer_of_patches(device, kind, pairs, n, m, dtype):
    a, b = make_cloud(kind, pairs, n, 5, dtype).to(device), make_cloud(kind, pairs, m, 6, dtype).to(device)
    b[:, 0] = a[:, n // 2]
    assert_same(chamfer_distance(a, b), reference_chamfer.chamfer(a, b))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kinds=st.tuples(st.sampled_from(WIDE_KINDS), st.sampled_from(WIDE_KINDS)),
    queries=st.sampled_from([90, 300, 777]),
    count=st.sampled_from([257, 512, 1000, 2049]),
    k=st.sampled_from([1, 3, 8, 9, 16, 17, 40, 128]),
    radius=st.sampled_from([0.05, 0.3, 1.0, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_neighbors_of_larger_clouds(device, kinds, queries, count, k, radius, dtype):
    """The sizes from which clouds are sorted into buckets, with queries inside and outside the support."""
    support = make_cloud(kinds[0], 1, count, 6, dtype).to(device)
    query = make_cloud(kinds[1], 1, queries, 7, dtype).to(device)
    shared = min(queries, count) // 2
    query[:, :shared] = support[:, :shared]
    assert_same(knn(query, support, k), reference_neighbors.knn(query, support, k))
    assert_same(ball_query(query, support, radius, k), reference_neighbors.ball_query(query, support, radius, k))
    assert_same(three_nn(query, support), reference_neighbors.three_nn(query, support))
    assert_same(chamfer_distance(query, support), reference_chamfer.chamfer(query, support))


@pytest.mark.parametrize("device", DEVICES)
def test_a_few_ties_in_a_large_cloud(device):
    """Random targets, and around some of the queries two equally near ones in either order of index."""
    rng = torch.Generator().manual_seed(5)
    queries, targets = torch.rand(1, 900, 3, generator=rng), torch.rand(1, 900, 3, generator=rng)
    cells = torch.cartesian_prod(*[torch.arange(1, 8, 2) / 8.0] * 3)  # (64, 3), so that sums with the offset are exact
    queries[0, 100:164] = cells
    offset = torch.where(torch.arange(64) % 2 == 0, 1 / 128, -1 / 128)[:, None] * torch.eye(3)[torch.arange(64) % 3]
    targets[0, 300:364], targets[0, 700:764] = cells + offset, cells - offset
    ours = chamfer_distance(queries.to(device), targets.to(device))
    assert (ours[2][0, 100:164] < 364).all()
    assert_same(ours, reference_chamfer.chamfer(queries.to(device), targets.to(device)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["random", "surface"])
def test_neighbors_among_131072_points(device, kind):
    """All queries are searched; a few of them are compared with the reference."""
    support = make_cloud("random", 1, 131072, 8).to(device)
    if kind == "surface":
        support = support / support.norm(dim=-1, keepdim=True)
    query = support[:, ::64] + 0.01
    some = torch.arange(0, query.shape[1], 171, device=device)
    found = knn(query, support, 128), three_nn(query, support), ball_query(query, support, 0.03, 32)
    few = query[:, some]
    expected = (
        reference_neighbors.knn(few, support, 128),
        reference_neighbors.three_nn(few, support),
        reference_neighbors.ball_query(few, support, 0.03, 32),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(tuple(x[:, some] for x in ours) if isinstance(ours, tuple) else ours[:, some], theirs)
    d1, d2, i1, i2 = chamfer_distance(query, support)
    assert_same((d1[:, some], i1[:, some]), reference_chamfer.nearest(few, support))
    others = torch.arange(0, 131072, 4099, device=device)
    assert_same((d2[:, others], i2[:, others]), reference_chamfer.nearest(support[:, others], query))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(device, dtype):
    points = make_cloud("random", 2, 150, 5, dtype).to(device)
    distance = torch.float64 if dtype == torch.float64 else torch.float32
    assert_same(fps(points, 40), reference_sampling.fps(points, 40, False, "lowest"))
    sqdist, idx = knn(points[:, :20], points, 9)
    assert sqdist.dtype == distance
    assert_same((sqdist, idx), reference_neighbors.knn(points[:, :20], points, 9))
    assert chamfer_distance(points, points)[0].dtype == distance
    assert_same(group(points, points[:, :20], idx), reference_indexing.group(points, points[:, :20], idx))
    weight = torch.rand(2, 20, 3, device=device)
    assert_same(
        three_interpolate(points, idx[..., :3].contiguous(), weight),
        reference_indexing.three_interpolate(points, idx[..., :3], weight),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_inputs(device):
    wide = torch.randn(6, 3, 400, device=device)
    points, query = wide.transpose(1, 2)[::2, ::2], wide.transpose(1, 2)[1::2, 1::5]
    assert not points.is_contiguous()
    assert_same(fps(points, 50), fps(points.contiguous(), 50))
    assert_same(knn(query, points, 7), knn(query.contiguous(), points.contiguous(), 7))
    assert_same(three_nn(query, points), three_nn(query.contiguous(), points.contiguous()))
    assert_same(ball_query(query, points, 0.4, 7), ball_query(query.contiguous(), points.contiguous(), 0.4, 7))
    assert_same(chamfer_distance(query, points), chamfer_distance(query.contiguous(), points.contiguous()))
    idx = knn(query, points, 8)[1][..., ::2]
    assert_same(gather(points, idx), gather(points.contiguous(), idx.contiguous()))
    assert_same(group(points, query, idx), group(points.contiguous(), query.contiguous(), idx.contiguous()))


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_backward_agree_with_the_reference(device):
    torch.manual_seed(0)
    grad, idx = torch.randn(3, 70, 4, 37, device=device), torch.randint(0, 11, (3, 70, 4), device=device)
    expected = reference_indexing.gather_backward(grad.double(), idx, 11).float()
    torch.testing.assert_close(torch.ops.m2ae.gather_backward(grad, idx, 11), expected, rtol=1e-5, atol=1e-5)
    half = torch.ops.m2ae.gather_backward(grad.bfloat16(), idx, 11)
    torch.testing.assert_close(half, reference_indexing.gather_backward(grad.bfloat16(), idx, 11))
    values, flow = torch.randn(3, 11, 37, device=device), torch.randn(3, 70, 37, device=device)
    idx, weight = torch.randint(0, 11, (3, 70, 3), device=device), torch.rand(3, 70, 3, device=device)
    ours = torch.ops.m2ae.three_interpolate_backward(flow, values, idx, weight)
    torch.testing.assert_close(ours, reference_indexing.three_interpolate_backward(flow, values, idx, weight))
    a, b = torch.randn(3, 40, 3, device=device), torch.randn(3, 25, 3, device=device)
    d1, d2, i1, i2 = chamfer_distance(a, b)
    ours = torch.ops.m2ae.chamfer_backward(d1, d2, a, b, i1, i2)
    torch.testing.assert_close(ours, reference_chamfer.chamfer_backward(d1, d2, a, b, i1, i2))


@pytest.mark.parametrize("clouds", [1, 3, 9])
def test_thread_count_changes_nothing(clouds):
    points, b = make_cloud("random", clouds, 1500, 1), make_cloud("grid", clouds, 700, 2)
    grad = torch.randn(clouds, 1500, 40)

    def run():
        chosen = fps(points, 120)
        sqdist, idx = knn(b, points, 12)
        pairs = chamfer_distance(points, b)
        back = torch.ops.m2ae.chamfer_backward(pairs[0], pairs[1], points, b, pairs[2], pairs[3])
        sums = torch.ops.m2ae.gather_backward(grad, chosen[:, :1].expand(-1, 1500).contiguous(), 1500)
        return chosen, sqdist, idx, *pairs, *back, sums, ball_query(b, points, 0.3, 9), *three_nn(b, points)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert_same(run(), one)
    finally:
        torch.set_num_threads(before)


@cache
def search_all_kinds() -> list[torch.Tensor]:
    """Return what the neighbour searches find, in sorted and in small clouds, at this process's instruction set."""
    results = []
    for kind, dtype, count in itertools.product(WIDE_KINDS, [torch.float32, torch.float64], [90, 1100]):
        support, query = make_cloud(kind, 1, count, 1, dtype), make_cloud(kind, 1, 400, 2, dtype)
        results += [*knn(query, support, 20), *three_nn(query, support), *chamfer_distance(query, support)]
        results.append(ball_query(query, support, 0.4, 20))
    return results


def test_every_instruction_set_finds_the_same(lesser_processor):
    for ours, theirs in zip(lesser_processor(search_all_kinds), search_all_kinds(), strict=True):
        assert torch.equal(ours, theirs)
