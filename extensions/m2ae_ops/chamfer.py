"""Chamfer distance and loss. Shape legend: B batch, n and m points of the two clouds."""

import torch

from .private.checks import check_points
from .private.registration import register
from .reference import chamfer as reference

KINDS = ("cdl1", "cdl2")


def chamfer_distance(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the squared distance of every point to the nearest point of the other cloud, both ways.

    Args:
        a: (B, n, 3).
        b: (B, m, 3).

    Returns:
        d1 (B, n) and d2 (B, m), squared (no root, no mean), float32 for half-precision input; i1 (B, n) into b and
        i2 (B, m) into a, int64, the lowest index among equals. d1 and d2 are differentiable in a and b through the
        chosen pairs, any number of times. A NaN distance counts as infinity.

    Raises:
        ValueError: wrong shape or dtype, no points, tensors that do not match.
    """
    check_points("chamfer_distance", a=a, b=b)
    return torch.ops.m2ae.chamfer(a, b)


def chamfer_loss(a: torch.Tensor, b: torch.Tensor, kind: str = "cdl2") -> torch.Tensor:
    """Compare pairs of clouds by the Chamfer distance, without storing the distances.

    Same values as formulas over `chamfer_distance`, in less time and memory: what is kept for the way back is who chose whom (on the CPU)
    or the gradients themselves.

    Args:
        a: (B, n, 3).
        b: (B, m, 3).
        kind: "cdl2", the mean squared nearest distance one way plus the other; or "cdl1", the mean of both ways' mean
            nearest distances, whose root is clamped at 1e-12 squared units (no gradient below).

    Returns:
        (B,), one loss a pair, float32 for half-precision input, summed in float64; differentiable in a and b through the chosen
        pairs, any number of times. A NaN coordinate makes the loss of its pair NaN, an infinite one makes it infinite; either makes
        all gradients of its pair NaN. Other pairs are not touched.

    Raises:
        ValueError: wrong shape or dtype, no points, tensors that do not match, unknown kind.
    """
    check_points("chamfer_loss", a=a, b=b)
    if kind not in KINDS:
        raise ValueError(f"chamfer_loss: kind={kind!r} is unknown; choose from {', '.join(KINDS)}")
    root = kind == "cdl1"
    if a.device.type == "cpu":
        return torch.ops.m2ae.chamfer_chosen(a, b, root)[0]
    # Where a launch costs as much as the work, gradients come along with the loss.
    learning = torch.is_grad_enabled()
    return torch.ops.m2ae.chamfer_loss(a, b, root, learning and a.requires_grad, learning and b.requires_grad)[0]


def _distance_dtype(points):
    return torch.float64 if points.dtype == torch.float64 else torch.float32


def _fake(a, b):
    dtype = _distance_dtype(a)
    B, n, m = a.shape[0], a.shape[1], b.shape[1]
    d1, d2 = a.new_empty((B, n), dtype=dtype), a.new_empty((B, m), dtype=dtype)
    return d1, d2, torch.empty_like(d1, dtype=torch.int64), torch.empty_like(d2, dtype=torch.int64)


def _fake_backward(grad1, grad2, a, b, i1, i2):
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _fake_loss_backward(grad, grad_a, grad_b):
    return grad_a.new_empty(grad_a.shape), grad_b.new_empty(grad_b.shape)


def _fake_loss(a, b, root, want_a, want_b):
    dtype = _distance_dtype(a)
    grad_a = a.new_empty((a.shape[0] if want_a else 0, a.shape[1], 3), dtype=dtype)
    grad_b = b.new_empty((b.shape[0] if want_b else 0, b.shape[1], 3), dtype=dtype)
    return a.new_empty((a.shape[0],), dtype=dtype), grad_a, grad_b


def _fake_chosen(a, b, root):
    B, n, m = a.shape[0], a.shape[1], b.shape[1]
    i1, i2 = (a.new_empty((B, count), dtype=torch.int32) for count in (n, m))
    return a.new_empty((B,), dtype=_distance_dtype(a)), i1, i2


def _fake_chosen_backward(grad, a, b, i1, i2, root, want_a, want_b):
    grads = (x.new_empty((x.shape[0] if want else 0, x.shape[1], 3)) for x, want in ((a, want_a), (b, want_b)))
    return tuple(grads)


def _save(ctx, inputs, output):
    *_, i1, i2 = output
    ctx.mark_non_differentiable(i1, i2)
    ctx.save_for_backward(*inputs, i1, i2)


def _backward(ctx, grad1, grad2, *_):
    return torch.ops.m2ae.chamfer_backward(grad1, grad2, *ctx.saved_tensors)


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _second_backward(ctx, flow_a, flow_b):
    # The gradients are bilinear in weights and coordinates, and the map from coordinates to gradients is its own transpose.
    grad1, grad2, a, b, i1, i2 = ctx.saved_tensors
    to_a, to_b = torch.ops.m2ae.chamfer_backward(grad1, grad2, flow_a, flow_b, i1, i2)
    to_grad1 = 2 * (_offsets(a, b, i1) * _offsets(flow_a, flow_b, i1)).sum(-1)
    to_grad2 = 2 * (_offsets(b, a, i2) * _offsets(flow_b, flow_a, i2)).sum(-1)
    return to_grad1.to(grad1.dtype), to_grad2.to(grad2.dtype), to_a, to_b, None, None


def _offsets(query, support, idx):
    dtype = _distance_dtype(query)
    return query.to(dtype) - torch.ops.m2ae.gather(support.to(dtype), idx)


def _save_loss(ctx, inputs, output):
    a, b, ctx.root, *_ = inputs
    _, grad_a, grad_b = output
    ctx.mark_non_differentiable(grad_a, grad_b)
    ctx.save_for_backward(a, b, grad_a, grad_b)


def _loss_backward(ctx, grad, *_):
    a, b, *stored = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    computed = [
        not need or known.shape[0] == points.shape[0]
        for need, known, points in zip(needed, stored, (a, b), strict=True)
    ]
    if torch.is_grad_enabled() or not all(computed):
        # Stored gradients are constants; to be differentiated again, they are worked out from the pairs.
        *_, i1, i2 = torch.ops.m2ae.chamfer(a, b)
        found = reference.loss_gradients(grad, a, b, i1, i2, ctx.root, rows=torch.ops.m2ae)
    else:
        found = torch.ops.m2ae.chamfer_loss_backward(grad, *stored)
    to_a, to_b = (g.to(a.dtype) if need else None for need, g in zip(needed, found, strict=True))
    return to_a, to_b, None, None, None


def _save_chosen(ctx, inputs, output):
    a, b, ctx.root = inputs
    _, i1, i2 = output
    ctx.mark_non_differentiable(i1, i2)
    ctx.save_for_backward(a, b, i1, i2)


def _chosen_backward(ctx, grad, *_):
    a, b, i1, i2 = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        found = reference.loss_gradients(grad, a, b, i1.long(), i2.long(), ctx.root, rows=torch.ops.m2ae)
    else:
        found = torch.ops.m2ae.chamfer_chosen_backward(grad, a, b, i1, i2, ctx.root, *needed)
    to_a, to_b = (g.to(x.dtype) if need else None for need, g, x in zip(needed, found, (a, b), strict=True))
    return to_a, to_b, None


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
    backward=_second_backward,
    setup_context=_save_inputs,
)
register(
    "chamfer_loss",
    "(Tensor a, Tensor b, bool root, bool want_a, bool want_b) -> (Tensor, Tensor, Tensor)",
    reference=reference.chamfer_loss,
    fake=_fake_loss,
    backward=_loss_backward,
    setup_context=_save_loss,
)
register(
    "chamfer_loss_backward",
    "(Tensor grad, Tensor grad_a, Tensor grad_b) -> (Tensor, Tensor)",
    reference=reference.chamfer_loss_backward,
    fake=_fake_loss_backward,
)
register(
    "chamfer_chosen",
    "(Tensor a, Tensor b, bool root) -> (Tensor, Tensor, Tensor)",
    reference=reference.chamfer_chosen,
    fake=_fake_chosen,
    backward=_chosen_backward,
    setup_context=_save_chosen,
)
register(
    "chamfer_chosen_backward",
    "(Tensor grad, Tensor a, Tensor b, Tensor i1, Tensor i2, bool root, bool want_a, bool want_b) -> (Tensor, Tensor)",
    reference=reference.chamfer_chosen_backward,
    fake=_fake_chosen_backward,
)
