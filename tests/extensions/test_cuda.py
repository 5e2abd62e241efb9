"""CUDA kernels against the CPU: equal results, large clouds, streams, graphs, bad indices. They run where there is a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensions import (
    ball_query,
    chamfer_distance,
    fps,
    gather,
    group,
    knn,
    three_interpolate,
    three_nn,
)
from extensions.m2ae_ops.private.rows import row_sums
from extensions.m2ae_ops.reference import neighbors as reference_neighbors
from extensions.m2ae_ops.reference import sampling as reference_sampling

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPS = (
    "fps", "knn", "three_nn", "ball_query", "gather", "gather_backward", "group", "three_interpolate",
    "three_interpolate_backward", "chamfer", "chamfer_backward", "row_sums",
)  # fmt: skip


def cloud(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def indices(high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def same_on_cuda(op, *arguments) -> None:
    """Check that the op gives the same bits, dtypes and layout on both devices."""
    expected = op(*arguments)
    found = op(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments))
    for one, other in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (found, expected)), strict=True):
        assert one.is_cuda and one.dtype == other.dtype and one.is_contiguous()
        assert torch.equal(one.cpu(), other)


@pytest.fixture(scope="module", autouse=True)
def library():
    knn(cloud(1, 4, 3).cuda(), cloud(1, 4, 3).cuda(), 1)
    if not torch._C._dispatch_has_kernel_for_dispatch_key("m2ae::knn", "CUDA"):
        pytest.skip("no compiled CUDA kernels")


def test_every_op_has_a_kernel():
    assert [op for op in OPS if not torch._C._dispatch_has_kernel_for_dispatch_key(f"m2ae::{op}", "CUDA")] == []


@pytest.mark.parametrize("dtype", FLOATS)
def test_searches_equal_the_cpu(dtype):
    query, support = cloud(3, 70, 3, dtype=dtype), cloud(3, 2100, 3, seed=1, dtype=dtype)
    for k in (1, 16, 17, 32, 64, 128, 129, 300):
        same_on_cuda(knn, query, support, k)
    same_on_cuda(three_nn, query, support)
    same_on_cuda(ball_query, query, support, 0.5, 20)
    same_on_cuda(chamfer_distance, query, support)
    for samples in (1, 2, 300):
        same_on_cuda(fps, support, samples)
        same_on_cuda(lambda points, samples: fps(points, samples, skip_near_origin=True), support, samples)


@pytest.mark.parametrize("dtype", FLOATS)
def test_indexing_equals_the_cpu(dtype):
    values, idx, grad = cloud(3, 50, 37, dtype=dtype), indices(50, 3, 40, 9), cloud(3, 40, 9, 37, seed=1, dtype=dtype)
    same_on_cuda(gather, values, idx)
    same_on_cuda(group, values, cloud(3, 40, 37, seed=2, dtype=dtype), idx)
    # Few and many entries a row, a row without any.
    same_on_cuda(torch.ops.m2ae.gather_backward, grad, idx, 51)
    same_on_cuda(torch.ops.m2ae.gather_backward, grad, idx * 100, 10_000)
    same_on_cuda(torch.ops.m2ae.gather_backward, grad, idx // 25, 2)
    weight = torch.rand(3, 40, 3)
    same_on_cuda(three_interpolate, values, idx[..., :3], weight)
    ours = torch.ops.m2ae.three_interpolate_backward(
        grad[:, :, 0].cuda(), values.cuda(), idx[..., :3].cuda(), weight.cuda()
    )
    to_values, to_weight = torch.ops.m2ae.three_interpolate_backward(grad[:, :, 0], values, idx[..., :3], weight)
    assert torch.equal(ours[0].cpu(), to_values)
    torch.testing.assert_close(ours[1].cpu(), to_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "m"), [(32, 32), (7, 31), (300, 1200)])
def test_chamfer_backward_equals_the_cpu(dtype, n, m):
    a, b = cloud(5, n, 3, dtype=dtype), cloud(5, m, 3, seed=1, dtype=dtype)
    d1, d2, i1, i2 = chamfer_distance(a, b)
    same_on_cuda(torch.ops.m2ae.chamfer_backward, d1 + 1, d2 + 1, a, b, i1, i2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_row_sums_equal_the_cpu(dtype):
    same_on_cuda(row_sums, cloud(5000, 45, dtype=dtype), cloud(5000, 45, seed=1, dtype=dtype), cloud(45, seed=2))


@pytest.mark.parametrize("count", [1024, 1025, 2048, 4096, 8192, 8193, 20_000, 131_072])
@pytest.mark.parametrize("tie_break", ["lowest", "pointnet2"])
def test_fps_of_every_size(count, tie_break):
    for points in (cloud(2, count, 3).cuda(), indices(8, 2, count, 3).float().cuda()):
        ours = fps(points, 64, skip_near_origin=True, tie_break=tie_break)
        assert torch.equal(ours, reference_sampling.fps(points, 64, True, tie_break))


def test_neighbours_in_a_large_cloud():
    support = cloud(1, 131_072, 3).cuda()
    query = support[:, ::4001]
    for k in (16, 128):
        ours, expected = knn(query, support, k), reference_neighbors.knn(query, support, k)
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
    assert torch.equal(ball_query(query, support, 0.1, 32), reference_neighbors.ball_query(query, support, 0.1, 32))
    d1, d2, i1, i2 = chamfer_distance(query, support)
    assert d1.eq(0).all() and torch.equal(i1[0], torch.arange(0, 131_072, 4001, device="cuda"))
    assert torch.equal(i2, reference_neighbors.knn(support, query, 1)[1][..., 0]) and d2.shape == (1, 131_072)


def test_more_clouds_than_a_grid_has_rows():
    points = cloud(70_000, 4, 3).cuda()
    assert torch.equal(knn(points, points, 1)[1][..., 0], torch.arange(4, device="cuda").expand(70_000, 4))
    assert chamfer_distance(points, points)[0].eq(0).all()
    assert torch.equal(fps(points, 4).sort().values, torch.arange(4, device="cuda").expand(70_000, 4))


def test_an_empty_batch():
    points = torch.zeros(0, 5, 3, device="cuda")
    idx = torch.zeros(0, 2, 4, dtype=torch.int64, device="cuda")
    assert fps(points, 2).shape == (0, 2) and knn(points, points, 2)[1].shape == (0, 5, 2)
    assert three_nn(points, points)[0].shape == (0, 5, 3) and ball_query(points, points, 1.0, 2).shape == (0, 5, 2)
    assert gather(points, idx).shape == (0, 2, 4, 3) and group(points, points[:, :2], idx).shape == (0, 2, 4, 3)
    assert torch.ops.m2ae.gather_backward(torch.zeros(0, 2, 3, device="cuda"), idx[..., 0], 5).shape == (0, 5, 3)
    assert chamfer_distance(points, points)[0].shape == (0, 5)


def step(points: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Group a cloud and compare its patches: the ops of a training step."""
    centers = gather(points, fps(points, 32, skip_near_origin=True))
    _, idx = knn(centers, points, 16)
    patches = group(points, centers, idx).flatten(0, 1)
    d1, d2, i1, i2 = chamfer_distance(patches, patches.flip(1) * 1.1)
    return idx, d1, d2, *torch.ops.m2ae.chamfer_backward(d1, d2, patches, patches.flip(1) * 1.1, i1, i2)


def test_repeated_runs_give_the_same_bits():
    points, idx = cloud(8, 1024, 3).cuda(), indices(20, 8, 4000).cuda()
    grad = cloud(8, 4000, 16).cuda()
    first = (*step(points), torch.ops.m2ae.gather_backward(grad, idx, 20))
    for _ in range(5):
        again = (*step(points), torch.ops.m2ae.gather_backward(grad, idx, 20))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_the_current_stream_is_used():
    points = cloud(8, 2048, 3).cuda()
    expected = step(points)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(points)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the default stream would overtake this one and read zeros
        late.copy_(points)
        found = step(late)
    stream.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_nothing_waits_for_the_device():
    points = cloud(8, 2048, 3).cuda()
    step(points)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(points)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_with_new_points():
    points, fresh = cloud(8, 2048, 3).cuda(), cloud(8, 2048, 3, seed=1).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(points)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(points)
    points.copy_(fresh)
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, step(fresh), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_device_of_the_input_is_used():
    points = cloud(4, 1500, 3)
    expected = step(points.cuda(0))
    with torch.cuda.device(0):
        found = step(points.cuda(1))
    assert all(x.device.index == 1 and torch.equal(x.cpu(), y.cpu()) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("call", ["gather(v, idx)", "group(v, v, idx)", "three_interpolate(v, idx, v)"])
def test_an_index_out_of_range_is_caught_on_the_device(call):
    # A device-side assertion ends the process's use of the device, so it happens in a process of its own.
    script = (
        "import torch\nfrom extensions import gather, group, three_interpolate\n"
        "v, idx = torch.zeros(1, 3, 3, device='cuda'), torch.full((1, 3, 3), 3, device='cuda')\n"
        f"{call}\ntorch.cuda.synchronize()"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode != 0 and "device-side assert" in answer.stderr
