"""Plain PyTorch forms of the eight steps of the fused mini-PointNet. `../private/fused/launch.py` has the same functions as kernels.

Legend: R = G * k rows, the k members of group 0 first; A columns of the hidden rows, C of the joined ones, N or D of a maximum's result.
`norm` (3, A) holds mean, scale and shift, the one of the way back (5, C) slope and offset as well. `source` with `lift` is the first layer
before its norm: (R, A) and None, or points (R, 3) and their weight (A, 3). Operands of products have the dtype of the
weight; everything else is computed in float32 at least.
"""

import torch
from torch import Tensor


def _real(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _first(source: Tensor, lift: Tensor | None) -> Tensor:
    return _real(source) if lift is None else _real(source) @ lift.T


def _normed(x: Tensor, norm: Tensor) -> Tensor:
    return (x - norm[0]) * norm[1] + norm[2]


def _hidden(source: Tensor, lift: Tensor | None, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the hidden rows (R, A), rounded to a dtype."""
    return _real(_normed(_first(source, lift), norm).relu().to(dtype))


def _spread(grad: Tensor, winners: Tensor, k: int) -> Tensor:
    """Put the gradient (G, D) of a maximum at its winners, zeros elsewhere: (R, D)."""
    members = torch.arange(k, device=grad.device).view(1, k, 1)
    return torch.where(winners.unsqueeze(1) == members, _real(grad).unsqueeze(1), 0).flatten(0, 1)


def _joined_gradient(grad: Tensor, winners: Tensor, last: Tensor, joined: Tensor, norm: Tensor, k: int) -> Tensor:
    """Return the gradient of the joined rows (R, C) through maximum, last layer, ReLU and norm."""
    x = _real(joined)
    flow = _spread(grad, winners, k) @ _real(last)
    passed = torch.where(_normed(x, norm) > 0, flow * norm[1], 0)
    return passed + (norm[3] * (x - norm[0]) + norm[4])


def point_moments(points: Tensor) -> Tensor:
    """Sum the products of (x, y, z, 1) with itself over points (R, 3): (4, 4) float64."""
    exact = torch.cat([points, torch.ones_like(points[:, :1])], 1).double()
    return exact.T @ exact


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of the columns of x (R, A), float64."""
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    return mean, variance


def peak(source: Tensor, lift: Tensor | None, norm: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the largest of each group of hidden @ weight.T (N, A) and its member, the first of equals: (G, N), uint8 (G, N)."""
    rows = (_hidden(source, lift, norm, weight.dtype) @ _real(weight).T).to(weight.dtype)
    best, winners = rows.view(-1, k, len(weight)).max(1)
    return best, winners.to(torch.uint8)


def join(
    source: Tensor, lift: Tensor | None, norm: Tensor, weight: Tensor, offsets: Tensor, k: int, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return hidden @ weight.T (C, A) plus offsets (G, C) of the group: (R, C); with `moments`, mean and variance as well."""
    rows = _hidden(source, lift, norm, weight.dtype) @ _real(weight).T
    joined = (rows.view(len(offsets), k, -1) + _real(offsets).unsqueeze(1)).flatten(0, 1).to(weight.dtype)
    return (joined, *(column_moments(joined) if moments else (None, None)))


def winner_sums(
    grad: Tensor, winners: Tensor, source: Tensor, lift: Tensor | None, norm: Tensor, k: int, split: bool
) -> Tensor:
    """Sum the gradient (G, D) of a maximum times the hidden row that won it: (1, D, A).

    With `split`: (2, D, A), times x - mean and times 1, both where the ReLU lets x through.
    """
    sent, x = _spread(grad, winners, k).T, _first(source, lift)
    normed = _normed(x, norm)
    terms = ((normed > 0) * (x - norm[0]), (normed > 0).to(x.dtype)) if split else (normed.relu(),)
    return torch.stack([sent @ _real(term.to(grad.dtype)) for term in terms])


def join_backward(
    grad: Tensor,
    winners: Tensor,
    last: Tensor,
    joined: Tensor,
    norm: Tensor,
    source: Tensor,
    lift: Tensor | None,
    first_norm: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weight of the joined rows (C, A) and of the offsets (G, C), from grad (G, D) of the tokens."""
    change = _joined_gradient(grad, winners, last, joined, norm, k)
    rounded = _real(change.to(last.dtype))
    return rounded.T @ _hidden(source, lift, first_norm, last.dtype), change.view(len(grad), k, -1).sum(1)


def members_backward(
    grad: Tensor,
    winners: Tensor,
    last: Tensor,
    joined: Tensor,
    norm: Tensor,
    from_hidden: Tensor,
    pooled_grad: Tensor,
    pooled_winners: Tensor,
    widen: Tensor,
    source: Tensor,
    lift: Tensor | None,
    first_norm: Tensor,
    k: int,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradient g before the first ReLU and its sums over the rows.

    Points: None, and the sums of g * (x, y, z, 1), (4, A). Else: g (R, A), and the sums of g and of g * (value - mean), (2, A).
    """
    change = _real(_joined_gradient(grad, winners, last, joined, norm, k).to(last.dtype))
    total = change @ _real(from_hidden) + _spread(pooled_grad, pooled_winners, k) @ _real(widen)
    value = _first(source, lift)
    g = torch.where(_normed(value, first_norm) > 0, total, 0)
    if lift is not None:
        points = _real(source)
        return None, torch.cat([points, torch.ones_like(points[:, :1])], 1).T @ g
    return g.to(last.dtype), torch.stack([g.sum(0), (g * (value - first_norm[0])).sum(0)])


def norm_backward(flow: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Return the gradient of a norm's argument x (R, A) from that of its result, in the dtype of `flow`; norm is (5, A)."""
    return (_real(flow) * norm[1] + (norm[3] * (_real(x) - norm[0]) + norm[4])).to(flow.dtype)
