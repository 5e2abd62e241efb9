"""Plain PyTorch forms of the ops on rows. Shape legend: R rows, C channels."""

import torch
from torch import Tensor

BLOCK = 4096  # rows that are converted to double precision at a time


def row_sums(x: Tensor, y: Tensor, shift: Tensor) -> Tensor:
    """Return the sums of y and of y * (x - shift) over rows (R, C), as (2, C) float64."""
    total = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
    for xs, ys in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        ys = ys.double()
        total[0] += ys.sum(0)
        total[1] += (ys * (xs.double() - shift)).sum(0)
    return total


def _passed(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient before the ReLU of relu((x - mean) * scale + shift), and x - mean, in float32 at least."""
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    centered = x.to(real) - mean.to(real)
    return torch.where(centered * scale.to(real) + shift.to(real) > 0, grad.to(real), 0), centered


def norm_relu_sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the sums over the rows of g, the gradient before the ReLU, and of g * (x - mean), as (2, C) float64."""
    passed, centered = _passed(grad, x, mean, scale, shift)
    return row_sums(centered, passed, mean.new_zeros(x.shape[1], dtype=torch.float64))


def norm_relu_backward(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, offset: Tensor
) -> Tensor:
    """Return g * scale + slope * (x - mean) + offset, in the dtype of x."""
    passed, centered = _passed(grad, x, mean, scale, shift)
    scale, slope, offset = (t.to(centered.dtype) for t in (scale, slope, offset))
    return (passed * scale + (slope * centered + offset)).to(x.dtype)
