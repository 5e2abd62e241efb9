"""Gathering, grouping and interpolation. Shape legend: B batch, N points, G groups, K neighbours, C channels."""

import torch

from .private.checks import check_alike, check_device, check_float, check_index, check_size, check_values
from .private.registration import register
from .reference import indexing as reference


def gather(values: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Return the rows of `values` at `idx`.

    Args:
        values: (B, N, C) of any dtype.
        idx: (B, ...) int64 in 0..N-1, positions inside the own sample.

    Returns:
        (B, ..., C) in the dtype of `values`, differentiable in `values`. Repeated rows sum up in backward, half
        precision in float32.

    Raises:
        ValueError: wrong shape or dtype, tensors that do not match. An index out of range is an IndexError or
            RuntimeError (device-side on CUDA).
    """
    check_values("gather", values)
    check_index("gather", idx, "values", values)
    check_size("gather", *idx.shape, values.shape[-1])
    return torch.ops.m2ae.gather(values, idx)


def group(points: torch.Tensor, centers: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    """Return neighbourhoods as offsets from their centre: `points[idx] - center`.

    Args:
        points: (B, N, 3).
        centers: (B, G, 3), same dtype.
        idx: (B, G, K) int64 in 0..N-1.

    Returns:
        (B, G, K, 3), differentiable in `points` and `centers`.

    Raises:
        ValueError: wrong shape or dtype, tensors that do not match.
    """
    check_values("group", points)
    check_alike("group", points=points, centers=centers)
    check_index("group", idx, "points", points)
    if centers.dim() != 3 or centers.shape[-1] != points.shape[-1]:
        raise ValueError(f"group: centers must have shape (B, G, {points.shape[-1]}), got {tuple(centers.shape)}")
    if idx.dim() != 3 or idx.shape[1] != centers.shape[1]:
        raise ValueError(f"group: idx must have shape (B, {centers.shape[1]}, K), got {tuple(idx.shape)}")
    check_size("group", *idx.shape, points.shape[-1])
    return torch.ops.m2ae.group(points, centers, idx)


def three_interpolate(values: torch.Tensor, idx: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of three rows of `values` for every point.

    Args:
        values: (B, M, C) floating.
        idx: (B, N, 3) int64 in 0..M-1, as from `three_nn`.
        weight: (B, N, 3) floating; not normalised here.

    Returns:
        (B, N, C) in the dtype of `values`, summed in float32 at least, differentiable in `values` and `weight`.

    Raises:
        ValueError: wrong shape or dtype, tensors that do not match.
    """
    check_values("three_interpolate", values)
    check_index("three_interpolate", idx, "values", values)
    check_float("three_interpolate", "values", values)
    check_float("three_interpolate", "weight", weight)
    check_device("three_interpolate", "values", values, "weight", weight)
    if idx.dim() != 3 or idx.shape[-1] != 3:
        raise ValueError(f"three_interpolate: idx must have shape (B, N, 3), got {tuple(idx.shape)}")
    if weight.shape != idx.shape:
        raise ValueError(f"three_interpolate: weight must have shape {tuple(idx.shape)}, got {tuple(weight.shape)}")
    check_size("three_interpolate", idx.shape[0], idx.shape[1], values.shape[-1])
    return torch.ops.m2ae.three_interpolate(values, idx, weight)


def _fake_gather(values, idx):
    return values.new_empty((*idx.shape, values.shape[-1]))


def _fake_gather_backward(grad, idx, count):
    return grad.new_empty((grad.shape[0], count, grad.shape[-1]))


def _fake_group(points, centers, idx):
    return points.new_empty((*idx.shape, points.shape[-1]))


def _fake_three_interpolate(values, idx, weight):
    return values.new_empty((idx.shape[0], idx.shape[1], values.shape[-1]))


def _fake_three_interpolate_backward(grad, values, idx, weight):
    return torch.empty_like(values, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


def _save_gather(ctx, inputs, output):
    values, idx = inputs
    ctx.save_for_backward(idx)
    ctx.count = values.shape[1]


def _gather_backward(ctx, grad):
    (idx,) = ctx.saved_tensors
    return torch.ops.m2ae.gather_backward(grad, idx, ctx.count), None


def _save_scatter(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx, grad):
    # Summing rows is the transpose of gathering them, so its gradient gathers.
    (idx,) = ctx.saved_tensors
    return torch.ops.m2ae.gather(grad, idx), None, None


def _save_group(ctx, inputs, output):
    points, _, idx = inputs
    ctx.save_for_backward(idx)
    ctx.count = points.shape[1]


def _group_backward(ctx, grad):
    (idx,) = ctx.saved_tensors
    to_points = torch.ops.m2ae.gather_backward(grad, idx, ctx.count) if ctx.needs_input_grad[0] else None
    to_centers = -grad.sum(2) if ctx.needs_input_grad[1] else None
    return to_points, to_centers, None


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _three_interpolate_backward(ctx, grad):
    values, idx, weight = ctx.saved_tensors
    to_values, to_weight = torch.ops.m2ae.three_interpolate_backward(grad, values, idx, weight)
    return to_values, None, to_weight


def _three_interpolate_second(ctx, to_values, to_weight):
    # The first gradients are sums of grad * weight into rows and products grad * row: linear in each of the three, so that
    # their gradients are interpolations and first gradients again.
    grad, values, idx, weight = ctx.saved_tensors
    ops, (wants_grad, wants_values, _, wants_weight) = torch.ops.m2ae, ctx.needs_input_grad
    through_grad = through_values = through_weight = None
    if wants_grad:
        through_grad = ops.three_interpolate(to_values, idx, weight) + ops.three_interpolate(values, idx, to_weight)
    if wants_values:
        through_values = ops.three_interpolate_backward(grad, values, idx, to_weight)[0]
    if wants_weight:
        through_weight = ops.three_interpolate_backward(grad, to_values, idx, weight)[1]
    return through_grad, through_values, None, through_weight


register(
    "gather",
    "(Tensor values, Tensor idx) -> Tensor",
    reference=reference.gather,
    fake=_fake_gather,
    backward=_gather_backward,
    setup_context=_save_gather,
)
register(
    "gather_backward",
    "(Tensor grad, Tensor idx, SymInt count) -> Tensor",
    reference=reference.gather_backward,
    fake=_fake_gather_backward,
    backward=_scatter_backward,
    setup_context=_save_scatter,
)
register(
    "group",
    "(Tensor points, Tensor centers, Tensor idx) -> Tensor",
    reference=reference.group,
    fake=_fake_group,
    backward=_group_backward,
    setup_context=_save_group,
)
register(
    "three_interpolate",
    "(Tensor values, Tensor idx, Tensor weight) -> Tensor",
    reference=reference.three_interpolate,
    fake=_fake_three_interpolate,
    backward=_three_interpolate_backward,
    setup_context=_save_inputs,
)
register(
    "three_interpolate_backward",
    "(Tensor grad, Tensor values, Tensor idx, Tensor weight) -> (Tensor, Tensor)",
    reference=reference.three_interpolate_backward,
    fake=_fake_three_interpolate_backward,
    backward=_three_interpolate_second,
    setup_context=_save_inputs,
)
