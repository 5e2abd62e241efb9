"""Pointwise convolution and batch normalisation on channels-last rows.

Shapes: `R` rows (all leading dimensions flattened), `C` channels.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from extensions import batch_norm
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
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight.squeeze(-1), self.effective_bias())


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of rows (R, C); with `sync`, by the statistics of the rows of all processes.

    `torch.nn.SyncBatchNorm` refuses CPU tensors; `sync` does not.
    """

    sync = False

    @property
    def all_reduce(self) -> Callable[[Tensor], Tensor] | None:
        """What sums a tensor over all processes, or None where statistics are those of this one."""
        return all_reduce_sum if self.sync and world_size() > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows (R, C)."""
        return batch_norm(x, self)

    def relu(self, x: Tensor) -> Tensor:
        """Normalise rows (R, C) and take what is above zero."""
        return batch_norm(x, self, relu=True)


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Make every `BatchNorm` of a model use the statistics of all processes, in place."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.sync = True
    return model
