"""Plain PyTorch forms of the ops on members of patches. Legend: R = G * K rows, K members a group, C channels, D outputs.

Everything is computed in float32 at least and stored in the dtype of the rows.
"""

import torch
from torch import Tensor


def _real(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def group_max(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the largest of each k rows (R / k, C), and which of them it is, uint8."""
    values, winners = x.view(-1, k, x.shape[1]).max(1)
    return values, winners.to(torch.uint8)


def join_rows(x: Tensor, group: Tensor, k: int) -> Tensor:
    """Add group (G, C) to each of its k rows of x (R, C) in place; return the sums of x and of x * x, (2, C) float64."""
    rows = x.view(-1, k, x.shape[1])
    rows.copy_(_real(rows) + group.to(_real(x).dtype).unsqueeze(1))
    double = x.double()
    return torch.stack([double.sum(0), double.square().sum(0)])


def _normed(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    real = _real(x)
    return (real - mean.to(real.dtype)) * scale.to(real.dtype) + shift.to(real.dtype)


def norm_relu(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return relu((x - mean) * scale + shift)."""
    return _normed(x, mean, scale, shift).relu().to(x.dtype)


def lift_rows(points: Tensor, weight: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return relu(points @ weight.T + shift) in a dtype."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return (points.to(real) @ weight.to(real).T + shift.to(real)).relu().to(dtype)


def lift_rows_sums(grad: Tensor, out: Tensor, points: Tensor) -> Tensor:
    """Return the sums over rows of grad * (x, y, z, 1) where out > 0, (4, C) float64."""
    passed = torch.where(out > 0, grad, 0).double()
    return torch.cat([points.double().T @ passed, passed.sum(0, keepdim=True)])


def _spread(grad: Tensor, winners: Tensor, k: int) -> Tensor:
    """Put the gradient (G, D) of a maximum at its winners, zeros elsewhere: (R, D)."""
    members = torch.arange(k, device=grad.device).view(1, k, 1)
    return torch.where(winners.unsqueeze(1) == members, grad.unsqueeze(1), 0).flatten(0, 1)


def _peak(grad: Tensor, winners: Tensor, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows (R, C) and weight (D, C) of max over the group of rows @ weight.T."""
    k = len(rows) // max(len(grad), 1)
    real = _real(rows)
    dense = _spread(grad.to(real.dtype), winners, k)
    return dense @ weight.to(real.dtype), dense.T @ real


def spread_winners(grad: Tensor, winners: Tensor, weight: Tensor, rows: Tensor, grad_rows: Tensor) -> Tensor:
    """Add the gradient of the rows to grad_rows in place, return that of the weight."""
    to_rows, to_weight = _peak(grad, winners, weight, rows)
    grad_rows.copy_(_real(grad_rows) + to_rows)
    return to_weight


def peak_sums(grad, winners, weight, x, mean, scale, shift) -> tuple[Tensor, Tensor]:
    """Return the sums of g and g * (x - mean), (2, C) float64, and the gradient of the weight; g as in `peak_backward`."""
    normed = _normed(x, mean, scale, shift)
    flow, to_weight = _peak(grad, winners, weight, normed.relu())
    passed = torch.where(normed > 0, flow, 0).double()
    return torch.stack([passed.sum(0), (passed * (x.double() - mean.double())).sum(0)]), to_weight


def peak_backward(grad, winners, weight, x, mean, scale, shift, slope, offset) -> tuple[Tensor, Tensor]:
    """Return g * scale + slope * (x - mean) + offset, and its sum over each group.

    g is the gradient at the argument of the ReLU of max over the group of relu((x - mean) * scale + shift) @ weight.T.
    """
    normed = _normed(x, mean, scale, shift)
    flow, _ = _peak(grad, winners, weight, normed)
    mean, scale, slope, offset = (t.to(normed.dtype) for t in (mean, scale, slope, offset))
    value = torch.where(normed > 0, flow * scale, 0) + (slope * (_real(x) - mean) + offset)
    return value.to(x.dtype), value.view(len(grad), -1, x.shape[1]).sum(1)
