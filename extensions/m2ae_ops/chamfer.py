"""Chamfer distance. Shape legend: B batch, n and m points of the two clouds."""

import torch

from .checks import check_points
from .reference import chamfer as reference
from .registration import no_second_derivative, register


def chamfer_distance(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the squared distance of every point to the nearest point of the other cloud, both ways.

    Args:
        a: (B, n, 3).
        b: (B, m, 3).

    Returns:
        d1 (B, n) and d2 (B, m), squared (no root, no mean), float32 for half-precision input; i1 (B, n) into b and
        i2 (B, m) into a, int64, the lowest index among equals. d1 and d2 are differentiable in a and b through the
        chosen pairs, once. NaN counts as infinitely far.

    Raises:
        ValueError: wrong shape or dtype, no points, tensors that do not match.
    """
    check_points("chamfer_distance", a=a, b=b)
    return torch.ops.m2ae.chamfer(a, b)


def _fake(a, b):
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    B, n, m = a.shape[0], a.shape[1], b.shape[1]
    d1, d2 = a.new_empty((B, n), dtype=dtype), a.new_empty((B, m), dtype=dtype)
    return d1, d2, torch.empty_like(d1, dtype=torch.int64), torch.empty_like(d2, dtype=torch.int64)


def _fake_backward(grad1, grad2, a, b, i1, i2):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _save(ctx, inputs, output):
    *_, i1, i2 = output
    ctx.mark_non_differentiable(i1, i2)
    ctx.save_for_backward(*inputs, i1, i2)


def _backward(ctx, grad1, grad2, *_):
    return torch.ops.m2ae.chamfer_backward(grad1, grad2, *ctx.saved_tensors)


def _save_nothing(ctx, inputs, output):
    """The second derivative is refused, so nothing is kept for it."""


register(
    "chamfer",
    "(Tensor a, Tensor b) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.chamfer,
    fake=_fake,
    backward=_backward,
    setup_context=_save,
)
register(
    "chamfer_backward",
    "(Tensor grad1, Tensor grad2, Tensor a, Tensor b, Tensor i1, Tensor i2) -> (Tensor, Tensor)",
    reference=reference.chamfer_backward,
    fake=_fake_backward,
    backward=no_second_derivative("chamfer_distance"),
    setup_context=_save_nothing,
)
