"""The mini-PointNet of `patch_embed` on the CPU, in few passes over the members.

Matrix products are PyTorch's; everything between them is one pass each (`patches.py`), over blocks of rows that stay in the cache.
Batch statistics are sums in double precision, as in `batch_norm`. Three things are never computed: the normalised
rows of the first layer of points, whose statistics and gradients follow from the moments of three coordinates; what a maximum
drops, neither stored nor given a gradient; and rows after the first layer of `second_conv`, which are recomputed where they are needed.

Shapes: `R` = G * K members, the K of group 0 first, `G` groups, `C` channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..normalization import batch_norm
from . import choice
from .embedding import Layers, compute_dtype, finish
from .norms import Reduce, check_rows, folded, moments, reduction, track, way_back
from .patches import (
    LARGEST_GROUP,
    group_max,
    join_rows,
    lift_rows,
    lift_rows_sums,
    norm_relu,
    peak_backward,
    peak_sums,
    spread_winners,
)

BLOCK = 4096  # bytes of a column of the rows that are worked on at a time: 1024 rows of float32


def block_rows(dtype: torch.dtype, k: int) -> int:
    """Return how many rows are worked on at a time: whole groups, at least one."""
    return max(BLOCK // dtype.itemsize // k, 1) * k


def serves(rows: Tensor, k: int) -> bool:
    """Return whether this file serves these members: on the CPU, eager. A GPU and the compiler have better means of their own."""
    return choice.eager_cpu(rows) and compute_dtype(rows) in choice.DTYPES and k <= LARGEST_GROUP and len(rows) > 0


def train(layers: Layers, rows: Tensor, k: int) -> Tensor:
    """Embed rows (R, P) with the statistics of the batch, with gradients: (G, D)."""
    dtype, first, second = compute_dtype(rows), layers.first, layers.second
    check_rows(first, len(rows))
    if rows.shape[1] == 3 and not rows.requires_grad:
        hidden, mean, variance, count = LiftMembers.apply(
            rows, layers.lift, first.weight, first.bias, first.eps, reduction(first), dtype
        )
        track(first, mean + layers.lift_bias.detach(), variance, count)
    else:
        hidden = batch_norm(F.linear(rows, layers.lift, layers.lift_bias), first, relu=True).to(dtype)
    tokens, mean, variance, count = PeakOfGroups.apply(
        hidden, *layers[1:4], second.weight, second.bias, layers.last, k, second.eps, reduction(second)
    )
    track(second, mean + layers.joined_bias.detach(), variance, count)
    return finish(layers, tokens)


class LiftMembers(torch.autograd.Function):
    """relu(norm(points @ weight.T)) of points (R, 3) that need no gradient, stored as `dtype`.

    Returns hidden (R, C), mean and biased variance (C,) before the norm, and the number of rows of all processes.

    Mean and variance of a linear function of the points follow from the points' mean and covariance, and its gradient from the four
    sums of `lift_rows_sums`.
    """

    @staticmethod
    def forward(ctx, points, weight, gamma, beta, eps, reduce: Reduce, dtype):
        """Lift the members of groups."""
        exact = points.double()
        own = torch.cat([torch.ones(len(points), 1, dtype=torch.float64), exact], 1)
        own = own.T @ own  # (4, 4): count, sums of coordinates, sums of their products
        total = own if reduce is None else reduce(own)
        rows = total[0, 0]
        center = total[0, 1:] / rows
        covariance = total[1:, 1:] / rows - center.outer(center)
        w = weight.double()
        mean, variance = w @ center, ((w @ covariance) * w).sum(1).clamp_(min=0)
        inverse_std = torch.rsqrt(variance + eps)
        scale = gamma.double() * inverse_std
        hidden = lift_rows(points, w * scale.unsqueeze(1), beta.double() - mean * scale, dtype)
        ctx.save_for_backward(points, hidden, w, own, rows, mean, inverse_std, scale)
        ctx.reduce, ctx.real = reduce, weight.dtype
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return hidden, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        """Return the gradients of the inputs."""
        points, hidden, w, own, rows, mean, inverse_std, scale = ctx.saved_tensors
        sums = lift_rows_sums(grad.contiguous(), hidden, points)  # (4, C): of g x, g y, g z, g
        to_weight, to_beta = sums[:3].T, sums[3]  # (C, 3), (C,)
        to_gamma = ((w * to_weight).sum(1) - mean * to_beta) * inverse_std  # of g times the normalised value
        total = torch.stack([to_beta, to_gamma])
        total = total if ctx.reduce is None else ctx.reduce(total)
        normed = (w @ own[1:, 1:] - mean.outer(own[0, 1:])) * inverse_std.unsqueeze(1)  # (C, 3): value times x, y, z
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
    def forward(ctx, hidden, widen, from_hidden, from_group, gamma, beta, last, k, eps, reduce: Reduce):
        """Return the maximum over the members of each group."""
        dtype, groups, step = hidden.dtype, len(hidden) // k, block_rows(hidden.dtype, k)
        widen_t, hidden_t, last_t = (w.to(dtype).T for w in (widen, from_hidden, last))
        pooled = [group_max(block @ widen_t, k) for block in hidden.split(step)]
        pooled, pooled_winners = (torch.cat(parts) for parts in zip(*pooled, strict=True))
        offsets = pooled @ from_group.to(dtype).T  # (G, C)
        joined = hidden.new_empty(len(hidden), len(from_hidden))
        sums = 0
        for block, part, group in zip(hidden.split(step), joined.split(step), offsets.split(step // k), strict=True):
            torch.mm(block, hidden_t, out=part)
            sums = sums + join_rows(part, group, k)
        rows = torch.tensor(float(len(hidden)), dtype=torch.float64)
        if reduce is not None:
            sums, rows = reduce(sums), reduce(rows)
        mean, variance, inverse_std = moments(sums, rows, eps)
        norm = (mean, gamma.double() * inverse_std, beta)
        tokens = [group_max(norm_relu(part, *norm) @ last_t, k) for part in joined.split(step)]
        tokens, winners = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        weights, winning = (widen, from_hidden, from_group, last), (pooled, pooled_winners, joined, winners)
        ctx.save_for_backward(hidden, *weights, *winning, *norm, inverse_std, rows)
        ctx.reduce, ctx.step, ctx.groups = reduce, step, groups
        mean, variance = mean.to(gamma.dtype), variance.to(gamma.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return tokens, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        """Give each gradient to the member that was the maximum."""
        hidden, widen, from_hidden, from_group, last, pooled, pooled_winners, joined, winners, *rest = ctx.saved_tensors
        mean, scale, shift, inverse_std, rows = rest
        dtype, real, per_block = hidden.dtype, last.dtype, ctx.step * ctx.groups // len(hidden)
        rounded = last.to(dtype)  # as the products of the way forward saw it
        own, to_last = peak_sums(grad, winners, rounded, joined, mean=mean, scale=scale, shift=shift)
        slope, offset = way_back(own, scale, inverse_std, rows, ctx.reduce)

        weight = from_hidden.to(dtype)
        to_from_hidden = torch.zeros_like(from_hidden)
        to_hidden, to_offsets = torch.empty_like(hidden), []
        blocks = (
            grad.split(per_block),
            winners.split(per_block),
            *(t.split(ctx.step) for t in (joined, hidden, to_hidden)),
        )
        for flow, won, part, block, out in zip(*blocks, strict=True):
            to_part, to_group = peak_backward(
                flow, won, rounded, part, mean=mean, scale=scale, shift=shift, slope=slope, offset=offset
            )
            torch.mm(to_part, weight, out=out)
            to_from_hidden += to_part.T @ block
            to_offsets.append(to_group)
        to_offsets = torch.cat(to_offsets).to(dtype)  # (G, C)
        to_from_group = to_offsets.T @ pooled
        to_pooled = to_offsets @ from_group.to(dtype)
        to_widen = spread_winners(to_pooled, pooled_winners, widen.to(dtype), hidden, to_hidden)
        to_gamma, to_beta = own[1] * inverse_std, own[0]
        weights = (t.to(real) for t in (to_widen, to_from_hidden, to_from_group, to_gamma, to_beta, to_last))
        return to_hidden, *weights, None, None, None


def encode(layers: Layers, rows: Tensor, k: int) -> Tensor:
    """Embed rows (R, P) in evaluation mode without gradients, the norms folded into the weights: (G, D)."""
    dtype = compute_dtype(rows)
    scale, shift = folded(layers.first)
    lift_weight, lift_shift = layers.lift * scale.unsqueeze(1), layers.lift_bias * scale + shift
    scale, shift = folded(layers.second)
    weights = (layers.widen, *(part * scale.unsqueeze(1) for part in layers[2:4]), layers.last)
    widen_t, hidden_t, group_t, last_t = (w.to(dtype).T for w in weights)
    bias = (layers.joined_bias * scale + shift).to(dtype)
    tokens = []
    for block in rows.split(block_rows(dtype, k)):
        if rows.shape[1] == 3:
            hidden = lift_rows(block, lift_weight, lift_shift, dtype)
        else:
            hidden = F.linear(block.to(dtype), lift_weight.to(dtype), lift_shift.to(dtype)).relu_()
        pooled, _ = group_max(hidden @ widen_t, k)
        joined = (hidden @ hidden_t).view(len(pooled), k, -1)
        joined.add_(torch.addmm(bias, pooled, group_t).unsqueeze(1)).relu_()
        tokens.append(group_max(joined.flatten(0, 1) @ last_t, k)[0])
    return torch.cat(tokens) + layers.last_bias.to(dtype)
