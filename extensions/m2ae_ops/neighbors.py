"""Neighbour search. Shape legend: B batch, Q queries, N support points, K neighbours."""

import torch

from .private.checks import check_count, check_points, check_radius, check_size
from .private.registration import register
from .reference import neighbors as reference


def knn(query: torch.Tensor, support: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k nearest support points of every query.

    Args:
        query: (B, Q, 3).
        support: (B, N, 3), N >= k.
        k: number of neighbours.

    Returns:
        Squared distances (B, Q, k), ascending, float32 for half-precision input, differentiable through the chosen
        pairs any number of times; and int64 indices (B, Q, k), lowest index first on equal distances. NaN counts as infinitely far.

    Raises:
        ValueError: wrong shape or dtype, no points, tensors that do not match, k no integer or outside 1..N.
    """
    check_points("knn", query=query, support=support)
    check_count("knn", "k", k)
    if k > support.shape[1]:
        raise ValueError(
            f"knn: k={k} exceeds the {support.shape[1]} support points; lower group_size or sample more points"
        )
    check_size("knn", query.shape[0], query.shape[1], k)
    return torch.ops.m2ae.knn(query, support, k)


def three_nn(query: torch.Tensor, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the three nearest support points of every query, for interpolation.

    With fewer than three support points the index of the nearest one fills the gap at squared distance infinity, so
    that inverse-distance weights of the filling are zero.

    Args:
        query: (B, Q, 3).
        support: (B, M, 3).

    Returns:
        Squared distances (B, Q, 3), differentiable, and int64 indices (B, Q, 3); otherwise as `knn`.
    """
    check_points("three_nn", query=query, support=support)
    check_size("three_nn", query.shape[0], query.shape[1], 3)
    return torch.ops.m2ae.three_nn(query, support)


def ball_query(query: torch.Tensor, support: torch.Tensor, radius: float, k: int) -> torch.Tensor:
    """Find up to k support points closer than `radius`, in index order (not by distance), as PointNet++ does.

    Args:
        query: (B, Q, 3).
        support: (B, N, 3).
        radius: > 0, in the unit of the coordinates; a point at exactly this distance is outside.
        k: number of indices returned, may exceed N.

    Returns:
        (B, Q, k) int64: the first k hits; fewer hits are padded with the first one, no hit at all gives index 0.

    Raises:
        ValueError: wrong shape or dtype, no points, tensors that do not match, k < 1, radius not positive and finite.
    """
    check_points("ball_query", query=query, support=support)
    check_count("ball_query", "k", k)
    check_radius("ball_query", radius)
    check_size("ball_query", query.shape[0], query.shape[1], k)
    return torch.ops.m2ae.ball_query(query, support, radius, k)


def _distance_dtype(query: torch.Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _fake_knn(query, support, k):
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape, dtype=_distance_dtype(query)), query.new_empty(shape, dtype=torch.int64)


def _fake_three_nn(query, support):
    return _fake_knn(query, support, 3)


def _fake_ball_query(query, support, radius, k):
    return query.new_empty((query.shape[0], query.shape[1], k), dtype=torch.int64)


def _save_pairs(ctx, inputs, output):
    query, support, *_ = inputs
    _, idx = output
    ctx.mark_non_differentiable(idx)
    ctx.save_for_backward(query, support, idx)


def _pair_backward(ctx, grad, _):
    query, support, idx = ctx.saved_tensors
    # Plain operations and differentiable ops, so that the gradient can be differentiated again.
    to_query, to_support = reference.pair_gradients(grad, query, support, idx, rows=torch.ops.m2ae)
    return to_query.to(query.dtype), to_support.to(support.dtype)


def _three_nn_backward(ctx, grad, _):
    _, support, idx = ctx.saved_tensors
    # The filling of a gap is infinitely far whatever the points are.
    real = torch.arange(3, device=idx.device) < support.shape[1]
    return _pair_backward(ctx, torch.where(real, grad, 0), None)


def _knn_backward(ctx, grad, _):
    return *_pair_backward(ctx, grad, _), None


register(
    "knn",
    "(Tensor query, Tensor support, int k) -> (Tensor, Tensor)",
    reference=reference.knn,
    fake=_fake_knn,
    backward=_knn_backward,
    setup_context=_save_pairs,
)
register(
    "three_nn",
    "(Tensor query, Tensor support) -> (Tensor, Tensor)",
    reference=reference.three_nn,
    fake=_fake_three_nn,
    backward=_three_nn_backward,
    setup_context=_save_pairs,
)
register(
    "ball_query",
    "(Tensor query, Tensor support, float radius, int k) -> Tensor",
    reference=reference.ball_query,
    fake=_fake_ball_query,
)
