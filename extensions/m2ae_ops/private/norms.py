"""Batch normalisation of rows from sums in double precision, alone or with a ReLU behind it.

A norm is a `torch.nn.BatchNorm1d` or what has its attributes; with an attribute `all_reduce`, a function that sums a tensor over all
processes, or None, its statistics are those of the rows of all of them. Shapes: R rows, C channels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .patches import norm_relu
from .rows import norm_relu_backward, norm_relu_sums, row_sums

Reduce = Callable[[Tensor], Tensor] | None


def reduction(norm: Any) -> Reduce:
    """Return what sums a tensor over all processes, or None where the rows of this one are all."""
    return getattr(norm, "all_reduce", None)


def check_rows(norm: Any, rows: int) -> None:
    """Raise a ValueError where one row has no statistics."""
    if rows < 2 and reduction(norm) is None:
        raise ValueError("batch normalisation needs more than one row while training; raise the batch size")


@torch.no_grad()
def track(norm: Any, mean: Tensor, variance: Tensor, rows: Tensor | int) -> None:
    """Take the mean and biased variance (C,) of a step of `rows` rows into the running statistics of a norm."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_((variance * (rows / (rows - 1))).to(variance.dtype), norm.momentum)


def folded(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) that evaluation mode amounts to."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def moments(sums: Tensor, rows: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, biased variance and 1 / sqrt(variance + eps) (C,) from the sums (2, C) of values and squares over the rows."""
    mean = sums[0] / rows
    variance = (sums[1] / rows - mean.square()).clamp_(min=0)
    return mean, variance, torch.rsqrt(variance + eps)


def way_back(own: Tensor, scale: Tensor, inverse_std: Tensor, rows: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Return slope and offset of d x = scale * grad + slope * (x - mean) + offset.

    That is w / std * (grad - mean(grad) - (x - mean) / var * mean(grad * (x - mean))), from `own` (2, C), the sums over this process's
    rows of grad and of grad * (x - mean).
    """
    total = own if reduce is None else reduce(own)
    return -scale * inverse_std.square() * total[1] / rows, -scale * total[0] / rows


def _statistics(x: Tensor, eps: float, reduce: Reduce) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return `moments` of rows (R, C) and how many rows these are, all float64."""
    sums = row_sums(x, x, x.new_zeros(x.shape[1]))  # (2, C): of x, of its square
    rows = torch.full((), len(x), dtype=torch.float64, device=x.device)
    if reduce is not None:
        sums, rows = reduce(sums), reduce(rows)
    return *moments(sums, rows, eps), rows


class NormaliseRows(torch.autograd.Function):
    """Batch normalisation of x (R, C); also returns mean, biased variance (C,) and rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, reduce: Reduce):
        """Normalise rows by the statistics of the batch."""
        mean, variance, inverse_std, rows = _statistics(x, eps, reduce)
        ctx.save_for_backward(x, weight, mean, inverse_std, rows)
        ctx.reduce = reduce
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        y = torch.addcmul(bias, x - mean, weight * torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance, rows)
        return y, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        """Return the gradients of rows, weight and bias."""
        x, weight, mean, inverse_std, rows = ctx.saved_tensors
        grad = grad.contiguous()
        own = row_sums(x.to(grad.dtype), grad, mean)  # (2, C): of grad, of grad * (x - mean)
        scale = weight * inverse_std
        slope, offset = way_back(own, scale, inverse_std, rows, ctx.reduce)
        offset = offset - slope * mean
        scale, slope, offset = (part.to(grad.dtype) for part in (scale, slope, offset))
        grad_x = torch.addcmul(offset, grad, scale).addcmul_(x, slope)
        return grad_x, (own[1] * inverse_std).to(weight.dtype), own[0].to(weight.dtype), None, None


class NormaliseReLU(torch.autograd.Function):
    """The same with a ReLU behind it, in the dtype of the rows; the backward pass works out again which values it let through."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, reduce: Reduce):
        """Normalise rows and apply ReLU."""
        mean, variance, inverse_std, rows = _statistics(x, eps, reduce)
        scale = weight * inverse_std
        ctx.save_for_backward(x, mean, scale, bias, inverse_std, rows)
        ctx.reduce = reduce
        y = norm_relu(x, mean, scale, bias)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return y, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        """Return the gradients of rows, weight and bias."""
        x, mean, scale, bias, inverse_std, rows = ctx.saved_tensors
        norm = {"mean": mean, "scale": scale, "shift": bias}
        own = norm_relu_sums(grad, x, **norm)
        slope, offset = way_back(own, scale, inverse_std, rows, ctx.reduce)
        grad_x = norm_relu_backward(grad, x, **norm, slope=slope, offset=offset)
        return grad_x, (own[1] * inverse_std).to(bias.dtype), own[0].to(bias.dtype), None, None
