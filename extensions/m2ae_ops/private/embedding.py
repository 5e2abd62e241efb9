"""The layers of a mini-PointNet as its forms need them, the plain form, and the one op for a GPU.

Legend: R = G * k members, the k of group 0 first; P channels of a member, A, W and C of the layers inside, D of a token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..normalization import batch_norm
from .fused.check import fused_ready
from .mini_pointnet import mini_pointnet
from .norms import reduction, track


class Layers(NamedTuple):
    """hidden = relu(norm(lift)); joined = hidden @ from_hidden.T + max of hidden @ widen.T @ from_group.T; then norm, ReLU, last, max."""

    lift: Tensor  # (A, P)
    widen: Tensor  # (W, A)
    from_hidden: Tensor  # (C, A)
    from_group: Tensor  # (C, W)
    last: Tensor  # (D, C)
    lift_bias: Tensor  # (A,)
    joined_bias: Tensor  # (C,)
    last_bias: Tensor  # (D,)
    first: Any  # the norms
    second: Any


def layers_of(convolutions: Sequence[Any], norms: Sequence[Any]) -> Layers:
    """Return the layers that four convolutions and two norms make."""
    lift, widen, join, last = (layer.weight.flatten(1) for layer in convolutions)
    lift_bias, widen_bias, join_bias, last_bias = (layer.bias for layer in convolutions)
    if norms[0].training:
        lift_bias, widen_bias, join_bias = map(_without_gradient, (lift_bias, widen_bias, join_bias))
    with torch.autocast(widen.device.type, enabled=False):
        from_group, from_member = join.split(len(widen), dim=1)
        joined_bias = (from_group + from_member) @ widen_bias + join_bias
        from_hidden = from_member @ widen
    return Layers(lift, widen, from_hidden, from_group, last, lift_bias, joined_bias, last_bias, *norms)


def _without_gradient(bias: Tensor) -> Tensor:
    """Give a bias the gradient zero: what float32 would leave where a norm takes it away is rounding, which Adam makes full steps of."""
    return bias.detach() + 0.0 * bias


def needs_gradient(layers: Layers, rows: Tensor) -> bool:
    """Return whether anything flows back; nothing does through a frozen encoder."""
    tensors = (rows, *layers[:8], layers.first.weight, layers.first.bias, layers.second.weight, layers.second.bias)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def compute_dtype(rows: Tensor) -> torch.dtype:
    """Return the dtype of products: that of autocast, where it is on."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def finish(layers: Layers, tokens: Tensor) -> Tensor:
    """Add the last bias to tokens from which the norms' statistics have taken the earlier ones."""
    # No part of the graph, those get their zero gradient from this term.
    unused = layers.joined_bias.sum() + layers.lift_bias.sum()
    return tokens + layers.last_bias.to(tokens.dtype) + 0.0 * unused


def plain(layers: Layers, rows: Tensor, k: int) -> Tensor:
    """Embed rows (R, P) by PyTorch's own operations: (G, D)."""
    hidden = batch_norm(F.linear(rows, layers.lift, layers.lift_bias), layers.first, relu=True)  # (R, A)
    pooled = F.linear(hidden, layers.widen).view(-1, k, len(layers.widen)).amax(1)  # (G, W)
    joined = F.linear(hidden, layers.from_hidden).view(-1, k, len(layers.from_hidden))  # (G, k, C)
    joined = joined + F.linear(pooled, layers.from_group, layers.joined_bias).unsqueeze(1)
    rows = batch_norm(joined.flatten(0, 1), layers.second, relu=True)  # (R, C)
    return F.linear(rows, layers.last, layers.last_bias).view(-1, k, len(layers.last)).amax(1)


def has_kernels(layers: Layers, rows: Tensor, k: int) -> bool:
    """Return whether the kernels for a GPU serve these members."""
    norms = (layers.first, layers.second)
    if not rows.is_cuda or len(rows) < 2 or any(reduction(norm) is not None for norm in norms):
        return False
    if not norms[0].training and needs_gradient(layers, rows):
        return False
    widths = tuple(len(weight) for weight in (layers.lift, layers.widen, layers.from_hidden, layers.last))
    points = rows.shape[1] == 3 and not (rows.requires_grad and torch.is_grad_enabled())
    return fused_ready(rows.device, compute_dtype(rows), widths, points, int(k))


def in_one_op(layers: Layers, rows: Tensor, k: int) -> Tensor:
    """Embed rows (R, P) by the op `mini_pointnet`: (G, D)."""
    norms, biases, stats = layers[-2:], (layers.lift_bias.detach(), layers.joined_bias.detach()), None
    if not norms[0].training:
        # The op leaves out the biases before its norms, so what the norms subtract is without them too.
        stats = tuple(
            torch.stack([norm.running_mean - left_out, norm.running_var])
            for norm, left_out in zip(norms, biases, strict=True)
        )
    tokens, *found = mini_pointnet(
        rows,
        weights=layers[:5],
        affines=tuple(torch.stack([norm.weight, norm.bias]) for norm in norms),
        k=k,
        eps=tuple(norm.eps for norm in norms),
        stats=stats,
        dtype=compute_dtype(rows),
    )
    if stats is None:
        for norm, left_out, (mean, variance) in zip(norms, biases, found, strict=True):
            track(norm, mean + left_out, variance, len(rows))
    return finish(layers, tokens)
