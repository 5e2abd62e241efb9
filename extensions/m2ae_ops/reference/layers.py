"""Plain PyTorch forms of the layers, as the papers have them. Legend: R rows, K members a group, C channels.

A norm is a `torch.nn.BatchNorm1d`, a convolution a `torch.nn.Conv1d` of kernel size 1, or what has its weight and bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    """Normalise rows (R, C) by their own statistics while the norm trains, else by the running ones."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = x.mean(0), x.var(0, correction=0)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def patch_embed(members: Tensor, convolutions: Sequence[Any], norms: Sequence[Any]) -> Tensor:
    """Embed members (..., K, P) into one token a group (..., D): mini-PointNet (Qi et al. 2017a; Pang et al. 2022, Sec. 3.1)."""
    lift, widen, join, last = convolutions
    first, second = norms
    local = _convolve(_norm_relu(_convolve(members, lift), first), widen)  # (..., K, W)
    whole = local.amax(-2, keepdim=True).expand_as(local)
    joined = _convolve(torch.cat([whole, local], -1), join)  # (..., K, C)
    return _convolve(_norm_relu(joined, second), last).amax(-2)


def peak_and_mean(x: Tensor) -> Tensor:
    """Return the maximum of (B, N, C) over the points plus their mean, (B, C)."""
    return x.amax(1) + x.mean(1)


def _convolve(x: Tensor, convolution: Any) -> Tensor:
    return x @ convolution.weight.flatten(1).T + convolution.bias


def _norm_relu(x: Tensor, norm: Any) -> Tensor:
    return batch_norm(x.flatten(0, -2), norm).relu().view_as(x)
