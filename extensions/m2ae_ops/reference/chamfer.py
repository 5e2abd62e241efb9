"""Chamfer distance and loss in plain PyTorch. Shape legend: B batch, n and m points of the two clouds."""

from typing import Any

import torch

from . import indexing
from .distance import pairwise_chunks, squared_distance, to_compute
from .neighbors import pair_gradients

SMALLEST = 1e-12
"""Squared distance at which the root of the L1 loss is clamped; below it the gradient is zero."""


def nearest(query: torch.Tensor, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distance and int64 index (B, Q) of the nearest support point, lowest index first."""
    parts = [sqdist.min(-1) for _, _, sqdist in pairwise_chunks(query, support)]
    return torch.cat([part.values for part in parts], 1), torch.cat([part.indices for part in parts], 1)


def chamfer(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (d1 (B, n), d2 (B, m), i1, i2): squared nearest distances from a to b, from b to a, and who they are."""
    d1, i1 = nearest(a, b)
    d2, i2 = nearest(b, a)
    return d1, d2, i1, i2


def chamfer_backward(
    grad1: torch.Tensor, grad2: torch.Tensor, a: torch.Tensor, b: torch.Tensor, i1: torch.Tensor, i2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients with respect to `a` and `b`, each through its own pair and through being chosen."""
    a_own, b_chosen = pair_gradients(grad1[..., None], a, b, i1[..., None])
    b_own, a_chosen = pair_gradients(grad2[..., None], b, a, i2[..., None])
    return (a_own + a_chosen).to(a.dtype), (b_own + b_chosen).to(b.dtype)


def pair_losses(a: torch.Tensor, b: torch.Tensor, d1: torch.Tensor, d2: torch.Tensor, root: bool) -> torch.Tensor:
    """Return the loss (B,) of every pair of clouds from the squared nearest distances both ways; NaN where a coordinate is."""
    if root:
        losses = (d1.clamp_min(SMALLEST).sqrt().mean(1) + d2.clamp_min(SMALLEST).sqrt().mean(1)) / 2
    else:
        losses = d1.mean(1) + d2.mean(1)
    broken = a.isnan().flatten(1).any(1) | b.isnan().flatten(1).any(1)
    return torch.where(broken, torch.nan, losses)


def loss_gradients(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    i1: torch.Tensor,
    i2: torch.Tensor,
    root: bool,
    *,
    rows: Any = indexing,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `grad` (B,) times the losses, in the compute precision; NaN for pairs that are not finite.

    Differentiable any number of times with `i1` and `i2` held fixed; `rows` as in `pair_gradients`.
    """
    a, b = to_compute(a), to_compute(b)
    forth = _distance_gradient(grad, a, b, i1, root, rows)
    back = _distance_gradient(grad, b, a, i2, root, rows)
    a_own, b_chosen = pair_gradients(forth[..., None], a, b, i1[..., None], rows=rows)
    b_own, a_chosen = pair_gradients(back[..., None], b, a, i2[..., None], rows=rows)
    finite = (a.isfinite().flatten(1).all(1) & b.isfinite().flatten(1).all(1))[:, None, None]
    return torch.where(finite, a_own + a_chosen, torch.nan), torch.where(finite, b_own + b_chosen, torch.nan)


def _distance_gradient(grad, query, support, idx, root, rows) -> torch.Tensor:
    """Return the gradient (B, Q) with respect to the squared distances of one direction."""
    share = (grad / query.shape[1])[:, None].to(query.dtype)
    if not root:
        return share.expand(idx.shape)
    sqdist = squared_distance(query, rows.gather(support, idx))
    clamped = sqdist < SMALLEST
    # Clamped distances get a harmless value, because the gradient of a root at 0 would turn zero times infinity to NaN.
    return torch.where(clamped, 0, share / (4 * torch.where(clamped, 1, sqdist).sqrt()))


def chamfer_loss(
    a: torch.Tensor, b: torch.Tensor, root: bool, want_a: bool, want_b: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses (B,) and their gradients with respect to `a` and `b`, in the compute precision.

    A gradient that is not wanted comes back with a batch of zero.
    """
    d1, d2, i1, i2 = chamfer(a, b)
    losses = pair_losses(a, b, d1, d2, root)
    grad_a, grad_b = d1.new_empty((0, *a.shape[1:])), d1.new_empty((0, *b.shape[1:]))
    if want_a or want_b:
        to_a, to_b = loss_gradients(torch.ones_like(losses), a, b, i1, i2, root)
        grad_a, grad_b = to_a if want_a else grad_a, to_b if want_b else grad_b
    return losses, grad_a, grad_b


def chamfer_loss_backward(
    grad: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored gradients times `grad` (B,); one with a batch of zero stays as it is."""
    factor = grad.to(grad_a.dtype)[:, None, None]
    return factor[: len(grad_a)] * grad_a, factor[: len(grad_b)] * grad_b


def chamfer_chosen(a: torch.Tensor, b: torch.Tensor, root: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses (B,) and who chose whom, i1 (B, n) into b and i2 (B, m) into a, int32."""
    d1, d2, i1, i2 = chamfer(a, b)
    return pair_losses(a, b, d1, d2, root), i1.int(), i2.int()


def chamfer_chosen_backward(
    grad: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    i1: torch.Tensor,
    i2: torch.Tensor,
    root: bool,
    want_a: bool,
    want_b: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `grad` (B,) times the losses of `chamfer_chosen`; one not wanted comes back with a batch of zero."""
    found = loss_gradients(grad, a, b, i1.long(), i2.long(), root)
    to_a, to_b = (g.to(x.dtype) for g, x in zip(found, (a, b), strict=True))
    return to_a if want_a else to_a[:0], to_b if want_b else to_b[:0]
