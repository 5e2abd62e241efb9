"""The mini-PointNet of `PatchEmbed` on the CPU, in few passes over the members.

Matrix products are PyTorch's; everything between them is one pass each (`extensions/m2ae_ops/patches.py`), over pieces of rows that
stay in the cache. Batch statistics are sums in double precision, as in `BatchNorm`. Three things are never computed: the normalised
rows of the first layer of points, whose statistics and gradients follow from the moments of three coordinates; what a maximum
drops, neither stored nor given a gradient; and rows after the first layer of `second_conv`, which are recomputed where they are needed.

Shapes: `R` = G * K members, the K of group 0 first, `G` groups, `C` channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import (
    group_max,
    join_rows,
    lift_rows,
    lift_rows_sums,
    norm_relu,
    peak_backward,
    peak_sums,
    spread_winners,
)
from utils.dist import all_reduce_sum

PIECE = 4096  # bytes of a column of the rows that are worked on at a time: 1024 rows of float32
LARGEST_GROUP = 255  # of `group_max`
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def piece_rows(dtype: torch.dtype, K: int) -> int:
    """Return how many rows are worked on at a time: whole groups, at least one."""
    return max(PIECE // dtype.itemsize // K, 1) * K


def can_fuse(rows: Tensor, K: int) -> bool:
    """Return whether this file serves these members: on the CPU, eager. A GPU and the compiler have better means of their own."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else rows.dtype
    return (
        rows.device.type == "cpu"
        and dtype in DTYPES
        and 0 < K <= LARGEST_GROUP
        and len(rows) > 0
        and not torch.compiler.is_compiling()
    )


class LiftMembers(torch.autograd.Function):
    """relu(norm(points @ weight.T)) of points (R, 3) that need no gradient, stored as `dtype`.

    Returns hidden (R, C), mean and biased variance (C,) before the norm, and the number of rows of all processes.

    Mean and variance of a linear function of the points follow from the points' mean and covariance, and its gradient from the four
    sums of `lift_rows_sums`.
    """

    @staticmethod
    def forward(ctx, points, weight, gamma, beta, eps, shared, dtype):
        exact = points.double()
        own = torch.cat([torch.ones(len(points), 1, dtype=torch.float64), exact], 1)
        own = own.T @ own  # (4, 4): count, sums of coordinates, sums of their products
        moments = all_reduce_sum(own) if shared else own
        rows = moments[0, 0]
        center = moments[0, 1:] / rows
        covariance = moments[1:, 1:] / rows - center.outer(center)
        w = weight.double()
        mean, variance = w @ center, ((w @ covariance) * w).sum(1).clamp_(min=0)
        inverse_std = torch.rsqrt(variance + eps)
        scale = gamma.double() * inverse_std
        hidden = lift_rows(points, w * scale.unsqueeze(1), beta.double() - mean * scale, dtype)
        ctx.save_for_backward(points, hidden, w, own, rows, mean, inverse_std, scale)
        ctx.shared, ctx.real = shared, weight.dtype
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return hidden, mean, variance, rows

    @staticmethod
    def backward(ctx, grad, *_):
        points, hidden, w, own, rows, mean, inverse_std, scale = ctx.saved_tensors
        sums = lift_rows_sums(grad.contiguous(), hidden, points)  # (4, C): of g x, g y, g z, g
        to_weight, to_beta = sums[:3].T, sums[3]  # (C, 3), (C,)
        to_gamma = ((w * to_weight).sum(1) - mean * to_beta) * inverse_std  # of g times the normalised value
        total = all_reduce_sum(torch.stack([to_beta, to_gamma])) if ctx.shared else torch.stack([to_beta, to_gamma])
        normed = (w @ own[1:, 1:] - mean.outer(own[0, 1:])) * inverse_std.unsqueeze(
            1
        )  # (C, 3): of normalised value x, y, z
        common = total[0].outer(own[0, 1:]) + total[1].unsqueeze(1) * normed
        to_weight = scale.unsqueeze(1) * (to_weight - common / rows)
        return None, to_weight.to(ctx.real), to_gamma.to(ctx.real), to_beta.to(ctx.real), None, None, None


class PeakOfGroups(torch.autograd.Function):
    """From hidden rows (R, A) to the maximum over each group of the last layer, without its bias: tokens (G, D).

    pooled = max over the group of hidden @ widen.T; joined = hidden @ from_hidden.T + pooled @ from_group.T;
    tokens = max over the group of relu(norm(joined)) @ last.T. Products run in the dtype of `hidden`, weights and sums stay as they are.

    Returns also mean and biased variance (C,) of `joined`, and the number of rows of all processes.
    """

    @staticmethod
    def forward(ctx, hidden, widen, from_hidden, from_group, gamma, beta, last, K, eps, shared):
        dtype, groups, step = hidden.dtype, len(hidden) // K, piece_rows(hidden.dtype, K)
        widen_t, hidden_t, last_t = (w.to(dtype).T for w in (widen, from_hidden, last))
        pooled = [group_max(piece @ widen_t, K) for piece in hidden.split(step)]
        pooled, pooled_winners = (torch.cat(parts) for parts in zip(*pooled, strict=True))
        offsets = pooled @ from_group.to(dtype).T  # (G, C)
        joined = hidden.new_empty(len(hidden), len(from_hidden))
        sums = 0
        for piece, part, group in zip(hidden.split(step), joined.split(step), offsets.split(step // K), strict=True):
            torch.mm(piece, hidden_t, out=part)
            sums = sums + join_rows(part, group, K)
        rows = torch.tensor(float(len(hidden)), dtype=torch.float64)
        if shared:
            sums, rows = all_reduce_sum(sums), all_reduce_sum(rows)
        mean = sums[0] / rows
        variance = (sums[1] / rows - mean.square()).clamp_(min=0)
        inverse_std = torch.rsqrt(variance + eps)
        norm = (mean, gamma.double() * inverse_std, beta)
        tokens = [group_max(norm_relu(part, *norm) @ last_t, K) for part in joined.split(step)]
        tokens, winners = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        ctx.save_for_backward(
            hidden,
            widen,
            from_hidden,
            from_group,
            last,
            pooled,
            pooled_winners,
            joined,
            winners,
            *norm,
            inverse_std,
            rows,
        )
        ctx.shared, ctx.step, ctx.groups = shared, step, groups
        mean, variance = mean.to(gamma.dtype), variance.to(gamma.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return tokens, mean, variance, rows

    @staticmethod
    def backward(ctx, grad, *_):
        hidden, widen, from_hidden, from_group, last, pooled, pooled_winners, joined, winners, *rest = ctx.saved_tensors
        mean, scale, shift, inverse_std, rows = rest
        dtype, real, per_piece = hidden.dtype, last.dtype, ctx.step * ctx.groups // len(hidden)
        rounded = last.to(dtype)  # as the products of the way forward saw it
        own, to_last = peak_sums(grad, winners, rounded, joined, mean=mean, scale=scale, shift=shift)
        total = all_reduce_sum(own) if ctx.shared else own
        # d joined = scale * (g - mean(g) - (x - mean) / var * mean(g * (x - mean)))
        slope = -scale * inverse_std.square() * total[1] / rows
        offset = -scale * total[0] / rows

        weight = from_hidden.to(dtype)
        to_from_hidden = torch.zeros_like(from_hidden)
        to_hidden, to_offsets = torch.empty_like(hidden), []
        pieces = (
            grad.split(per_piece),
            winners.split(per_piece),
            *(t.split(ctx.step) for t in (joined, hidden, to_hidden)),
        )
        for flow, won, part, piece, out in zip(*pieces, strict=True):
            to_part, to_group = peak_backward(
                flow, won, rounded, part, mean=mean, scale=scale, shift=shift, slope=slope, offset=offset
            )
            torch.mm(to_part, weight, out=out)
            to_from_hidden += to_part.T @ piece
            to_offsets.append(to_group)
        to_offsets = torch.cat(to_offsets).to(dtype)  # (G, C)
        to_from_group = to_offsets.T @ pooled
        to_pooled = to_offsets @ from_group.to(dtype)
        to_widen = spread_winners(to_pooled, pooled_winners, widen.to(dtype), hidden, to_hidden)
        to_gamma, to_beta = own[1] * inverse_std, own[0]
        weights = (t.to(real) for t in (to_widen, to_from_hidden, to_from_group, to_gamma, to_beta, to_last))
        return to_hidden, *weights, None, None, None


def encode_members(
    rows: Tensor,
    K: int,
    first: nn.Sequential,
    second: nn.Sequential,
    from_hidden: Tensor,
    from_group: Tensor,
    bias: Tensor,
) -> Tensor:
    """Run a mini-PointNet in evaluation mode without gradients, its norms folded into the weights: (R, C_in) to (G, C_out).

    Args:
        first, second: `first_conv` and `second_conv` of `PatchEmbed`.
        from_hidden, from_group, bias: what makes the joined rows, from `PatchEmbed._joining`.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else rows.dtype
    lift, norm, _, widen = first
    scale, shift = norm.folded()
    lift_weight, lift_shift = lift.weight.squeeze(-1) * scale.unsqueeze(1), lift.bias * scale + shift
    norm, last = second[1], second[3]
    scale, shift = norm.folded()
    weights = (
        widen.weight.squeeze(-1),
        from_hidden * scale.unsqueeze(1),
        from_group * scale.unsqueeze(1),
        last.weight.squeeze(-1),
    )
    widen_t, hidden_t, group_t, last_t = (w.to(dtype).T for w in weights)
    bias = (bias * scale + shift).to(dtype)
    tokens = []
    for piece in rows.split(piece_rows(dtype, K)):
        if lift.in_channels == 3:
            hidden = lift_rows(piece, lift_weight, lift_shift, dtype)
        else:
            hidden = F.linear(piece.to(dtype), lift_weight.to(dtype), lift_shift.to(dtype)).relu_()
        pooled, _ = group_max(hidden @ widen_t, K)
        joined = (hidden @ hidden_t).view(len(pooled), K, -1)
        joined.add_(torch.addmm(bias, pooled, group_t).unsqueeze(1)).relu_()
        tokens.append(group_max(joined.flatten(0, 1) @ last_t, K)[0])
    return torch.cat(tokens) + last.bias.to(dtype)
