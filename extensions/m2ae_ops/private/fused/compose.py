"""The mini-PointNet from eight steps, forward and backward: `launch.py` has them as kernels, `../../reference/embedding.py` in PyTorch.

Of everything as wide as the joined rows, only those rows themselves are ever in memory: written once and read once on the way forward, read
three times on the way back. Hidden rows of points, normalised rows and all gradients of rows live inside a kernel.

Legend: R = G * k rows, A columns of the hidden rows, W of the pooled ones, C of the joined ones, D of the tokens.
"""

from types import ModuleType

import torch
from torch import Tensor


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _norm(stats: Tensor, affine: Tensor, eps: float) -> Tensor:
    """Return mean, scale and shift from mean and variance and from weight and bias, all (2, A): (3, A)."""
    return torch.stack([stats[0], affine[0] * torch.rsqrt(stats[1] + eps), affine[1]])


def _slope_and_offset(norm: Tensor, inverse: Tensor, sums: Tensor, rows: int) -> Tensor:
    """Return what a norm's own gradient adds, (2, A): slope * (x - mean) + offset, from the sums over the rows of g and g * (x - mean).

    d x = scale * (g - mean(g) - (x - mean) / var * mean(g * (x - mean)))
    """
    return torch.stack([-norm[1] * inverse.square() * sums[1] / rows, -norm[1] * sums[0] / rows])


def _stats_of_points(moments: Tensor, lift: Tensor) -> Tensor:
    """Return mean and biased variance (2, A) of points @ lift.T from the moments (4, 4) of the points."""
    count, weight = moments[3, 3], lift.double()
    center = moments[3, :3] / count
    covariance = moments[:3, :3] / count - center.outer(center)
    return torch.stack([weight @ center, ((weight @ covariance) * weight).sum(1).clamp_(min=0)])


def forward(
    steps: ModuleType,
    rows: Tensor,
    lift: Tensor,
    widen: Tensor,
    from_hidden: Tensor,
    from_group: Tensor,
    last: Tensor,
    first_affine: Tensor,
    second_affine: Tensor,
    first_stats: Tensor | None,
    second_stats: Tensor | None,
    k: int,
    first_eps: float,
    second_eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """As `mini_pointnet`; returns tokens, both stats, and for the way back: source, moments, pooled, its winners, joined, winners."""
    real, training = _real(dtype), first_stats is None
    widen, from_hidden, from_group, last = (w.to(dtype).contiguous() for w in (widen, from_hidden, from_group, last))
    moments = rows.new_empty(0, dtype=torch.float64)
    if lift.shape[1] == 3:
        source, weight, stored = rows.to(real).contiguous(), lift.to(real).contiguous(), rows.new_empty(0)
        if training:
            moments = steps.point_moments(source)
            first_stats = _stats_of_points(moments, weight)
    else:
        source, weight = rows.to(dtype) @ lift.to(dtype).T, None
        stored = source
        if training:
            first_stats = torch.stack(steps.column_moments(source))
    first_stats = first_stats.to(real, copy=True)
    norm = _norm(first_stats, first_affine.to(real), first_eps)
    pooled, pooled_winners = steps.peak(source, weight, norm, widen, k)
    joined, mean, variance = steps.join(source, weight, norm, from_hidden, pooled @ from_group.T, k, training)
    second_stats = (torch.stack([mean, variance]) if training else second_stats).to(real, copy=True)
    tokens, winners = steps.peak(joined, None, _norm(second_stats, second_affine.to(real), second_eps), last, k)
    return tokens, first_stats, second_stats, stored, moments, pooled, pooled_winners, joined, winners


def backward(
    steps: ModuleType,
    grad: Tensor,
    rows: Tensor,
    lift: Tensor,
    widen: Tensor,
    from_hidden: Tensor,
    from_group: Tensor,
    last: Tensor,
    first_affine: Tensor,
    second_affine: Tensor,
    first_stats: Tensor,
    second_stats: Tensor,
    stored: Tensor,
    moments: Tensor,
    pooled: Tensor,
    pooled_winners: Tensor,
    joined: Tensor,
    winners: Tensor,
    k: int,
    first_eps: float,
    second_eps: float,
) -> tuple[Tensor, ...]:
    """Return the gradients of rows (nothing for points), lift, widen, from_hidden, from_group, last and both affines."""
    dtype, real, count, of_points = joined.dtype, _real(joined.dtype), len(rows), lift.shape[1] == 3
    source, weight = (rows.to(real).contiguous(), lift.to(real).contiguous()) if of_points else (stored, None)
    widen, from_hidden, from_group, last = (w.to(dtype).contiguous() for w in (widen, from_hidden, from_group, last))
    first_affine, second_affine, grad = first_affine.to(real), second_affine.to(real), grad.to(dtype).contiguous()
    first, norm = _norm(first_stats, first_affine, first_eps), _norm(second_stats, second_affine, second_eps)

    # The row that wins a channel is scale * (x - mean) + shift where the ReLU lets it through. The sums of either part give the
    # gradient of the last layer and, weighed by that layer, the sums of g and of g * (x - mean) that the norm needs.
    offsets, passes = steps.winner_sums(grad, winners, joined, None, norm, k, True)  # (D, C) each
    to_last = norm[1] * offsets + norm[2] * passes
    sums = torch.stack([(last * passes).sum(0), (last * offsets).sum(0)])
    inverse = torch.rsqrt(second_stats[1] + second_eps)
    to_second = torch.stack([sums[1] * inverse, sums[0]])
    norm = torch.cat([norm, _slope_and_offset(norm, inverse, sums, count)])

    to_from_hidden, to_groups = steps.join_backward(grad, winners, last, joined, norm, source, weight, first, k)
    to_groups = to_groups.to(dtype)
    to_from_group, to_pooled = to_groups.T @ pooled, to_groups @ from_group
    (to_widen,) = steps.winner_sums(to_pooled, pooled_winners, source, weight, first, k, False)
    flow, sums = steps.members_backward(
        grad, winners, last, joined, norm, from_hidden, to_pooled, pooled_winners, widen, source, weight, first, k
    )
    if of_points:
        to_rows = rows.new_empty(0)
        to_lift, to_first = _points_backward(weight, moments, sums, first, first_stats, first_eps)
    else:
        inverse = torch.rsqrt(first_stats[1] + first_eps)
        to_first = torch.stack([sums[1] * inverse, sums[0]])
        change = steps.norm_backward(flow, source, torch.cat([first, _slope_and_offset(first, inverse, sums, count)]))
        to_rows, to_lift = (change @ lift.to(dtype)).to(rows.dtype), change.T @ rows.to(dtype)
    weights = (to_lift, to_widen, to_from_hidden, to_from_group, to_last)
    return to_rows, *(t.to(lift.dtype) for t in weights), to_first, to_second


def _points_backward(
    lift: Tensor, moments: Tensor, sums: Tensor, norm: Tensor, stats: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of lift (A, 3) and of the affine (2, A), from the sums (4, A) of g * (x, y, z, 1) over the points."""
    exact, weight, inverse = sums.double(), lift.double(), torch.rsqrt(stats[1].double() + eps)
    mean, count = stats[0].double(), moments[3, 3]
    to_weight, to_shift = exact[:3].T, exact[3]  # (A, 3), (A,)
    to_scale = ((weight * to_weight).sum(1) - mean * to_shift) * inverse  # of g times the normalised value
    normed = (weight @ moments[:3, :3] - mean.outer(moments[3, :3])) * inverse.unsqueeze(1)  # value times x, y, z
    common = to_shift.outer(moments[3, :3]) + to_scale.unsqueeze(1) * normed
    to_lift = norm[1].double().unsqueeze(1) * (to_weight - common / count)
    return to_lift, torch.stack([to_scale, to_shift]).to(stats.dtype)
