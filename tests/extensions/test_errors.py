"""Bad input of every op is a ValueError that names op, argument, value, limit and remedy; nothing is computed or allocated."""

import numpy as np
import pytest
import torch

from extensions import (
    ball_query,
    chamfer_distance,
    chamfer_loss,
    fps,
    gather,
    group,
    knn,
    three_interpolate,
    three_nn,
)
from extensions.m2ae_ops.private.rows import row_sums

A, B = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
IDX, WEIGHT = torch.zeros(2, 4, 3, dtype=torch.int64), torch.zeros(2, 4, 3)
ROWS = torch.zeros(4, 3)

# Calls of two clouds, and the names of these.
PAIRS = {
    "knn": (lambda a, b: knn(a, b, 2), "query", "support"),
    "three_nn": (three_nn, "query", "support"),
    "ball_query": (lambda a, b: ball_query(a, b, 0.5, 2), "query", "support"),
    "chamfer_distance": (chamfer_distance, "a", "b"),
    "chamfer_loss": (chamfer_loss, "a", "b"),
}


def huge(*shape: int) -> torch.Tensor:
    """Return zeros of this shape that take the memory of one value."""
    return torch.zeros(()).expand(shape)


@pytest.mark.parametrize("op", PAIRS)
def test_two_clouds(op):
    call, first, second = PAIRS[op]
    for a, b, message in [
        (A[:, :0], B, rf"{op}: {first} has zero points, shape \(2, 0, 3\); leave out empty clouds"),
        (A, B[:, :0], f"{op}: {second} has zero points"),
        (A, B[:1], f"{op}: {first} has batch size 2 but {second} has 1"),
        (A, B[..., :2], rf"{op}: {second} must have shape \(B, N, 3\), got \(2, 5, 2\)"),
        (A[0], B, rf"{op}: {first} must have shape \(B, N, 3\), got \(4, 3\)"),
        (A, B.long(), f"{op}: {second} must be float16, .* got torch.int64; call .float"),
        (A, B.bool(), f"{op}: {second} must be float16, .* got torch.bool"),
        (A, B.to(torch.complex64), f"{op}: {second} must be float16, .* got torch.complex64"),
        (A, B.half(), f"{op}: {first} is torch.float32 but {second} is torch.float16; convert one of them"),
        (A, B.to("meta"), f"{op}: {first} is on cpu but {second} is on meta; move one of them"),
        (A, B.to_sparse(), f"{op}: {second} must be a dense tensor, got layout torch.sparse_coo; call .to_dense"),
        (A, B.numpy(), f"{op}: {second} must be a tensor, got ndarray; convert it by torch.as_tensor"),
        (A[:1], huge(1, 2**31, 3), f"{op}: {second} has 2147483648 points, more than the limit 2147483647; split"),
        (huge(1, 2**31, 3), B[:1], f"{op}: {first} has 2147483648 points"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(a, b)


CALLS = [
    (lambda: fps(A[:, :0], 2), "fps: points has zero points"),
    (lambda: fps(A, 0), "fps: num_samples=0 must be at least 1"),
    (lambda: fps(A, -3), "fps: num_samples=-3 must be at least 1"),
    (lambda: fps(A, 2.0), r"fps: num_samples=2.0 must be an integer, got float; convert it by int\(\)"),
    (lambda: fps(A, True), "fps: num_samples=True must be an integer, got bool"),
    (lambda: fps(A, "2"), "fps: num_samples='2' must be an integer, got str"),
    (lambda: fps(A.to_sparse(), 2), "fps: points must be a dense tensor"),
    (lambda: fps(A.int(), 2), "fps: points must be float16"),
    (lambda: fps(huge(1, 2**31, 3), 2), "fps: points has 2147483648 points"),
    (
        lambda: fps(A, 2**62),
        f"fps: a result of 2 x {2**62} values exceeds the limit {2**60 - 1}; work on smaller batches",
    ),
    (lambda: knn(A, B, 6), "knn: k=6 exceeds the 5 support points; lower group_size or sample more points"),
    (lambda: knn(A, B, 2.5), "knn: k=2.5 must be an integer, got float"),
    (lambda: knn(A, B, True), "knn: k=True must be an integer, got bool"),
    (lambda: knn(A, B, None), "knn: k=None must be an integer, got NoneType"),
    (lambda: knn(huge(2**24, 2**20, 3), huge(2**24, 2**17, 3), 2**17), "knn: a result of 16777216 x 1048576 x 131072"),
    (lambda: ball_query(A, B, 0.5, 2.0), "ball_query: k=2.0 must be an integer, got float"),
    (lambda: ball_query(A, B, "1", 2), "ball_query: radius='1' must be a number, got str"),
    (lambda: ball_query(A, B, True, 2), "ball_query: radius=True must be a number, got bool"),
    (lambda: ball_query(A, B, -1.0, 2), "ball_query: radius=-1.0 must be positive and finite"),
    (lambda: ball_query(A, B, float("inf"), 2), "ball_query: radius=inf must be positive and finite"),
    (lambda: ball_query(A, B, 0.5, 2**62), "ball_query: a result of 2 x 4 x 4611686018427387904 values exceeds"),
    (lambda: three_nn(huge(2**35, 2**24, 3), huge(2**35, 1, 3)), "three_nn: a result of 34359738368 x 16777216 x 3"),
    (lambda: gather(A, IDX.int()), "gather: idx must be int64, got torch.int32"),
    (lambda: gather(A.to_sparse(), IDX), "gather: values must be a dense tensor"),
    (lambda: gather(A, IDX.to_sparse()), "gather: idx must be a dense tensor"),
    (lambda: gather(huge(1, 1, 2**30), IDX[:1, :1, :1].expand(1, 2**20, 2**20)), "gather: a result of 1 x 1048576"),
    (lambda: group(A, B[:, :4].double(), IDX), "group: points is torch.float32 but centers is torch.float64"),
    (lambda: group(A, B[:, :4].to_sparse(), IDX), "group: centers must be a dense tensor"),
    (lambda: group(A, A, IDX.to("meta")), "group: points is on cpu but idx is on meta"),
    (lambda: three_interpolate(A.long(), IDX, WEIGHT), "three_interpolate: values must be float16"),
    (lambda: three_interpolate(A, IDX, WEIGHT.long()), "three_interpolate: weight must be float16"),
    (lambda: three_interpolate(A, IDX, WEIGHT.to("meta")), "three_interpolate: values is on cpu but weight is on meta"),
    (lambda: row_sums(ROWS, ROWS.double(), ROWS[0]), "row_sums: x is torch.float32 but y is torch.float64"),
    (lambda: row_sums(ROWS, ROWS.to("meta"), ROWS[0]), "row_sums: x is on cpu but y is on meta"),
    (lambda: row_sums(ROWS.long(), ROWS, ROWS[0]), "row_sums: x must be float16"),
    (lambda: row_sums(ROWS, ROWS[:2], ROWS[0]), r"row_sums: x and y must be \(R, C\) and shift \(C,\), got \(4, 3\)"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_counts_may_be_integers_of_numpy():
    points = torch.rand(1, 9, 3)
    assert torch.equal(fps(points, np.int64(4)), fps(points, 4))
    assert torch.equal(knn(points, points, np.int32(3))[1], knn(points, points, 3)[1])
    assert ball_query(points, points, np.float32(0.5), np.int64(2)).shape == (1, 9, 2)


def test_no_clouds_give_empty_results():
    none = torch.zeros(0, 4, 3)
    assert fps(none, 2).shape == (0, 2) and knn(none, none, 3)[1].shape == (0, 4, 3)
    assert ball_query(none, none, 1.0, 5).shape == (0, 4, 5) and three_nn(none, none)[0].shape == (0, 4, 3)
    assert [x.shape for x in chamfer_distance(none, none)] == [(0, 4)] * 4


def test_checks_leave_a_dynamic_graph_whole():
    def step(points, count: int):
        centers = gather(points, fps(points, count))
        sqdist, idx = knn(centers, points, min(count, 4))
        near = ball_query(centers, points, 0.5, count)
        patches = group(points, centers, idx).flatten(0, 1)
        return sqdist.sum() + near.sum() + chamfer_loss(patches, patches[:, :2]).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, count in [(20, 6), (31, 7), (40, 9)]:
        points = torch.rand(2, size, 3)
        torch.testing.assert_close(compiled(points, count), step(points, count))
    # A whole graph cannot build the message of a symbolic value; otherwise the call falls back to plain Python.
    with pytest.raises(ValueError, match="num_samples=0 must be at least 1"):
        torch.compile(step, dynamic=True, backend="aot_eager")(torch.rand(2, 20, 3), 0)
