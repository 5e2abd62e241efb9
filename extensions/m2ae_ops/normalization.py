"""Batch normalisation. Shape legend: R rows, C channels."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .private import choice
from .private.norms import NormaliseReLU, NormaliseRows, check_rows, reduction, track


def batch_norm(x: Tensor, norm: Any, *, relu: bool = False) -> Tensor:
    """Normalise rows by the statistics of the batch while training, else by the running ones, and take what is above zero if asked.

    On the CPU, PyTorch sums channels-last statistics in float32 one row after the other: over 10^5 rows the mean is off by 1e-5 and
    the gradients of a whole model by 1e-3. Here they are summed in double precision, which also makes them the same however
    rows are spread over processes. On a GPU, statistics of a single process are PyTorch's.

    Args:
        x: (R, C).
        norm: a `torch.nn.BatchNorm1d`, or what has its attributes; its running statistics are updated while it trains. An
            attribute `all_reduce`, a function that returns the sum of a tensor over all processes, makes statistics those of
            the rows of all processes.
        relu: return what is above zero, 0 elsewhere. While training on the CPU both are one pass over the rows, which stay in
            their dtype.

    Returns:
        (R, C), differentiable once in x, weight and bias.

    Raises:
        ValueError: a single row while training, or x is not (R, C).
    """
    if x.dim() != 2:
        raise ValueError(f"batch_norm: x must be (R, C), got {tuple(x.shape)}; flatten the leading dimensions")
    if not norm.training or (x.is_cuda and reduction(norm) is None):
        y = _by_pytorch(x, norm)
    else:
        check_rows(norm, len(x))
        fused = relu and choice.eager_cpu(x)
        form = NormaliseReLU if fused else NormaliseRows
        y, mean, variance, rows = form.apply(x, norm.weight, norm.bias, norm.eps, reduction(norm))
        track(norm, mean, variance, rows)
        if fused:
            return y
    return F.relu(y) if relu else y


def _by_pytorch(x: Tensor, norm: Any) -> Tensor:
    if norm.training:
        norm.num_batches_tracked += 1
    running = (norm.running_mean, norm.running_var)
    return F.batch_norm(x, *running, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
