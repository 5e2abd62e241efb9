"""Plain PyTorch form of the row sums."""

import torch

BLOCK = 4096  # rows that are converted to double precision at a time


def row_sums(x: torch.Tensor, y: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return the sums of y and of y * (x - shift) over rows (R, C), as (2, C) float64."""
    total = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
    for xs, ys in zip(x.split(BLOCK), y.split(BLOCK), strict=True):
        ys = ys.double()
        total[0] += ys.sum(0)
        total[1] += (ys * (xs.double() - shift)).sum(0)
    return total
