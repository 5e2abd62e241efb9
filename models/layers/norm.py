"""Pointwise convolution and batch normalisation on channels-last rows.

Shapes: `R` rows (all leading dimensions flattened), `C` channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import norm_relu, norm_relu_backward, norm_relu_sums, row_sums
from utils.dist import all_reduce_sum, world_size


class PointwiseConv(nn.Conv1d):
    """Apply a 1x1 convolution to the last dimension, as a matrix product.

    The weight keeps the convolution's shape (out, in, 1), so that published checkpoints load unchanged.

    Args:
        before_norm: batch normalisation follows and takes any constant away. The gradient of the bias is zero then, and is returned as
            zero while training: what fp32 would leave of it is rounding, which Adam turns into steps of full size.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, *, before_norm: bool = False):
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self.before_norm = before_norm

    def effective_bias(self) -> Tensor | None:
        """Return the bias, without gradient where batch statistics cancel it."""
        if self.bias is None or not (self.training and self.before_norm):
            return self.bias
        return self.bias.detach() + 0.0 * self.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1), self.effective_bias())


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of rows (R, C); with `sync`, by the statistics of the rows of all processes.

    Note:
        On the CPU, PyTorch sums channels-last statistics in fp32 one row after the other: over 10^5 rows the mean is off by 1e-5 and
        the gradients of a whole model by 1e-3. Here sums are taken in double precision, which also makes them the same however rows
        are spread over processes (`tests/models/test_layers.py`). `torch.nn.SyncBatchNorm` refuses CPU tensors; `sync` does not.
    """

    sync = False

    @property
    def shared(self) -> bool:
        """True where statistics are those of all processes."""
        return self.sync and world_size() > 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (x.is_cuda and not self.shared):
            return super().forward(x)
        self.check_rows(len(x))
        y, mean, variance, rows = _NormaliseRows.apply(x, self.weight, self.bias, self.eps, self.shared)
        self.track(mean, variance, rows)
        return y

    def relu(self, x: Tensor) -> Tensor:
        """Normalise rows (R, C) and take what is above zero.

        In training on the CPU this is one pass over the rows each way besides their sums, and rows stay in their dtype.
        """
        if not self.training or not can_fuse(x):
            return F.relu(self(x))
        self.check_rows(len(x))
        y, mean, variance, rows = _NormaliseReLU.apply(x, self.weight, self.bias, self.eps, self.shared)
        self.track(mean, variance, rows)
        return y

    def check_rows(self, rows: int) -> None:
        """Raise a ValueError where one row has no statistics."""
        if rows < 2 and not self.shared:
            raise ValueError("batch normalisation needs more than one row while training; raise the batch size")

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, rows: Tensor | int) -> None:
        """Take the mean and biased variance (C,) of a step of `rows` rows into the running statistics."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_((variance * (rows / (rows - 1))).to(variance.dtype), self.momentum)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift (C,) that evaluation mode amounts to."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def can_fuse(x: Tensor) -> bool:
    """Return whether passes over rows are put together by hand: on the CPU, eager. A GPU and the compiler have better means."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _statistics(x: Tensor, eps: float, shared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, biased variance and 1 / sqrt(variance + eps) (C,) of rows (R, C), and how many rows these are, all float64."""
    sums = row_sums(x, x, x.new_zeros(x.shape[1]))  # (2, C): of x, of its square
    rows = torch.full((), len(x), dtype=torch.float64, device=x.device)
    if shared:
        sums, rows = all_reduce_sum(sums), all_reduce_sum(rows)
    mean = sums[0] / rows
    variance = (sums[1] / rows - mean.square()).clamp_(min=0)
    return mean, variance, torch.rsqrt(variance + eps), rows


def _way_back(own: Tensor, scale: Tensor, inverse_std: Tensor, rows: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Return slope and offset of d x = scale * grad + slope * (x - mean) + offset.

    That is w / std * (grad - mean(grad) - (x - mean) / var * mean(grad * (x - mean))), from `own` (2, C), the sums over this process's rows
    of grad and of grad * (x - mean).
    """
    total = all_reduce_sum(own) if shared else own
    return -scale * inverse_std.square() * total[1] / rows, -scale * total[0] / rows


class _NormaliseRows(torch.autograd.Function):
    """Batch normalisation from double-precision sums, forward and backward; also returns mean, biased variance (C,) and rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, shared: bool):
        mean, variance, inverse_std, rows = _statistics(x, eps, shared)
        ctx.save_for_backward(x, weight, mean, inverse_std, rows)
        ctx.shared = shared
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        y = torch.addcmul(bias, x - mean, weight * torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance, rows)
        return y, mean, variance, rows

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, inverse_std, rows = ctx.saved_tensors
        grad = grad.contiguous()
        own = row_sums(x.to(grad.dtype), grad, mean)  # (2, C): of grad, of grad * (x - mean)
        scale = weight * inverse_std
        slope, offset = _way_back(own, scale, inverse_std, rows, ctx.shared)
        offset = offset - slope * mean
        scale, slope, offset = (part.to(grad.dtype) for part in (scale, slope, offset))
        grad_x = torch.addcmul(offset, grad, scale).addcmul_(x, slope)
        return grad_x, (own[1] * inverse_std).to(weight.dtype), own[0].to(weight.dtype), None, None


class _NormaliseReLU(torch.autograd.Function):
    """The same with a ReLU behind it, in the dtype of the rows; whether that let a value through is worked out again on the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, shared: bool):
        mean, variance, inverse_std, rows = _statistics(x, eps, shared)
        scale = weight * inverse_std
        ctx.save_for_backward(x, mean, scale, bias, inverse_std, rows)
        ctx.shared = shared
        y = norm_relu(x, mean, scale, bias)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.mark_non_differentiable(mean, variance, rows)
        return y, mean, variance, rows

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, mean, scale, bias, inverse_std, rows = ctx.saved_tensors
        norm = {"mean": mean, "scale": scale, "shift": bias}
        own = norm_relu_sums(grad, x, **norm)
        slope, offset = _way_back(own, scale, inverse_std, rows, ctx.shared)
        grad_x = norm_relu_backward(grad, x, **norm, slope=slope, offset=offset)
        return grad_x, (own[1] * inverse_std).to(bias.dtype), own[0].to(bias.dtype), None, None


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Make every `BatchNorm` of a model use the statistics of all processes, in place."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.sync = True
    return model
