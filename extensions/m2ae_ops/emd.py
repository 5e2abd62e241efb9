"""Earth mover's distance. Shape legend: B batch, N points."""

import math

import torch

from .private.checks import check_points
from .private.registration import register
from .reference import emd as reference

EPS_LIMIT = 1e30
ITERS_LIMIT = 1 << 31
POINTS_LIMIT = 1 << 30  # kernels count points in 32 bits


def emd(
    a: torch.Tensor, b: torch.Tensor, *, eps: float = 0.005, iters: int = 3000, bijective: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match every point of `a` with a point of `b` so that the sum of squared distances is nearly the least possible.

    An auction (Bertsekas 1988) with decreasing price steps; `reference/emd.py` defines it step by step. Any number of points.

    Args:
        a: (B, N, 3).
        b: (B, N, 3).
        eps: the last price step, in units of squared distance, above 0. Once everybody is assigned, the mean of `cost` is at
            most `eps` above that of the best bijection (the sum at most N * eps), up to rounding of single costs; commonly it
            is a tenth of that. An eps below 2**-17 (float64: 2**-46) of the squared diagonal of the box around both clouds
            counts as that, so that every bid raises a price.
        iters: at most `iters * N` bids per cloud, as many as `iters` rounds in which everybody bids; at least 1. Common clouds
            need 1 to 40 N, so that the default is never reached; no bound holds where bids run out.
        bijective: bid until everybody is assigned, whatever `iters` says. Otherwise whoever has no partner when the bids
            run out takes the nearest point of `b`, and `assignment` is no bijection then.

    Returns:
        cost (B, N), the squared distance of each matched pair, `(dx*dx + dy*dy) + dz*dz` to the bit and float32 for
        half-precision input; assignment (B, N) int64 into b. cost is differentiable in a and b through the matching found
        (which is taken as fixed), any order. The same for any number of threads, and on every device.

    Raises:
        ValueError: wrong shape or dtype, no points, clouds of different sizes or above 2**30 points, eps or iters
            out of range.

    Note:
        A point with a coordinate that is NaN or beyond 2**56 (float64: 2**480) is infinitely far. Its pairs count as twice
        the squared diagonal of the box around all other points, so that it gets a partner like any other.
        The error bound then holds for these costs. A NaN cost is returned as infinity.
    """
    check_points("emd", a=a, b=b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"emd: a has {a.shape[1]} points but b has {b.shape[1]}, a matching needs as many; repeat or sample points, "
            "or use chamfer_distance"
        )
    if a.shape[1] > POINTS_LIMIT:
        raise ValueError(
            f"emd: a has {a.shape[1]} points, at most {POINTS_LIMIT} can be matched; split or sample the clouds"
        )
    if not 0 < eps <= EPS_LIMIT or math.isnan(eps):
        raise ValueError(f"emd: eps={eps} must be above 0 and at most {EPS_LIMIT:g}; 0.005 suits clouds of unit size")
    if iters < 1:
        raise ValueError(f"emd: iters={iters} must be at least 1; 3000 is enough for nearly all clouds")
    return torch.ops.m2ae.emd(a, b, float(eps), min(iters, ITERS_LIMIT), bijective)


def _fake(a, b, eps, iters, bijective):
    cost = a.new_empty(a.shape[:2], dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)
    return cost, torch.empty_like(cost, dtype=torch.int64)


def _save(ctx, inputs, output):
    a, b, *_ = inputs
    _, assignment = output
    ctx.mark_non_differentiable(assignment)
    ctx.save_for_backward(a, b, assignment)


def _backward(ctx, grad, _):
    """Send 2 * grad * (a_i - its partner) to each pair; only differentiable ops, so that this can be differentiated again."""
    a, b, assignment = ctx.saved_tensors
    flow = 2 * grad[..., None] * (a.to(grad.dtype) - torch.ops.m2ae.gather(b, assignment).to(grad.dtype))  # (B, N, 3)
    grad_b = torch.ops.m2ae.gather_backward(-flow, assignment, b.shape[1])
    return flow.to(a.dtype), grad_b.to(b.dtype), None, None, None


register(
    "emd",
    "(Tensor a, Tensor b, float eps, int iters, bool bijective) -> (Tensor, Tensor)",
    reference=reference.emd,
    fake=_fake,
    backward=_backward,
    setup_context=_save,
)
