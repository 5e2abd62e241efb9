"""Propagation: carry the features of few points over to many, by their three nearest neighbours.

Shapes: `B` batch, `M` coarse points, `G` fine points, `C` channels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import three_interpolate, three_nn
from models.layers.norm import BatchNorm, PointwiseConv


def interpolate(fine: Tensor, coarse: Tensor, values: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Interpolate values (B, M, C) at coarse (B, M, 3) to fine (B, G, 3), weighted by inverse squared distance.

    Weights are 1 / (d + epsilon) with the squared distance d, normalised over the three neighbours (Qi et al. 2017b, Eq. 2).

    Note:
        The published code computes d from the expanded square; the plain sum used here agrees within 1e-4
        (`tests/parity/test_point_m2ae.py`).
    """
    sqdist, idx = three_nn(fine, coarse)
    weight = 1.0 / (sqdist + epsilon)
    weight = weight / weight.sum(-1, keepdim=True)
    return three_interpolate(values, idx, weight.to(values.dtype))  # (B, G, C)


class RowsConvNorm(nn.Sequential):
    """1x1 convolution and batch normalisation of (R, C) rows, with or without a GELU behind; keys `0` and `1`."""

    def __init__(self, in_channels: int, out_channels: int, *, activate: bool):
        layers = [PointwiseConv(in_channels, out_channels, before_norm=True), BatchNorm(out_channels)]
        super().__init__(*layers, *([nn.GELU()] if activate else []))


class ResidualConv(nn.Module):
    """GELU(net2(net1(x)) + x) on rows (R, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.net1 = RowsConvNorm(channels, channels, activate=True)
        self.net2 = RowsConvNorm(channels, channels, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return rows (B, N, C) after two layers and the residual."""
        return nn.functional.gelu(self.net2(self.net1(x)) + x)


class TokenPropagation(nn.Module):
    """Fuse interpolated coarse tokens with the skip tokens of a finer scale (Zhang et al. 2022, Sec. 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, *, blocks: int = 1):
        super().__init__()
        self.fuse = nn.Module()
        self.fuse.net = RowsConvNorm(in_channels, out_channels, activate=True)
        self.extraction = nn.Module()
        self.extraction.operation = nn.Sequential(*(ResidualConv(out_channels) for _ in range(blocks)))

    def forward(self, fine: Tensor, coarse: Tensor, skip: Tensor | None, values: Tensor) -> Tensor:
        """Map values (B, M, C1) at coarse (B, M, 3) and skip (B, G, C0), or None, at fine (B, G, 3) to (B, G, C_out)."""
        joined = interpolate(fine, coarse, values)
        if skip is not None:
            joined = torch.cat([skip, joined.to(skip.dtype)], dim=-1)  # (B, G, C0 + C1)
        B, G, C = joined.shape
        rows = self.extraction.operation(self.fuse.net(joined.view(B * G, C)))
        return rows.view(B, G, -1)


class PointPropagation(nn.Module):
    """Give every point a feature from its coordinates and the tokens around it (Qi et al. 2017b, Sec. 3.4).

    Args:
        in_channels: C, channels of the tokens.
        widths: channels after each convolution; batch normalisation and ReLU follow on each.

    Class attributes:
        epsilon: as in `interpolate`.

    Note:
        Interpolation and the first convolution are linear, so the tokens are widened before they are interpolated: M rows
        instead of G go through the wide product, exact up to rounding (`tests/models/test_part_segmenter.py`).
    """

    epsilon: ClassVar[float] = 1e-8

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        channels = [3 + in_channels, *widths]
        self.mlp_convs = nn.ModuleList(
            PointwiseConv(before, after, before_norm=True) for before, after in pairwise(channels)
        )
        self.mlp_bns = nn.ModuleList(BatchNorm(width) for width in widths)

    def forward(self, points: Tensor, centers: Tensor, tokens: Tensor) -> Tensor:
        """Map tokens (B, M, C) at centers (B, M, 3) to features (B, G, widths[-1]) of points (B, G, 3)."""
        first = self.mlp_convs[0]
        own, carried = first.weight.squeeze(-1).split([3, tokens.shape[-1]], dim=1)
        x = F.linear(points, own, first.effective_bias())  # (B, G, widths[0])
        x = x + interpolate(points, centers, F.linear(tokens, carried), self.epsilon)
        B, G, _ = x.shape
        rows = self.mlp_bns[0].relu(x.flatten(0, 1))
        for conv, norm in zip(self.mlp_convs[1:], self.mlp_bns[1:], strict=True):
            rows = norm.relu(conv(rows))
        return rows.view(B, G, -1)


class LinearPartHead(nn.Linear):
    """Score the parts of every point by one linear layer on its interpolated tokens, their maximum and mean, and the category.

    Args:
        widths: channels of each set of tokens.

    Note:
        The layer is applied to the tokens before they are interpolated, which is the same, as both are linear.
    """

    def __init__(self, widths: Sequence[int], categories: int, parts: int):
        super().__init__(3 * sum(widths) + categories, parts)
        self.widths, self.categories = list(widths), categories

    def forward(self, points: Tensor, tokens: Sequence[tuple[Tensor, Tensor]], category: Tensor) -> Tensor:
        """Score points (B, G, 3): token sets, centers (B, M, 3) and tokens (B, M, C) each, and a one-hot category to (B, G, parts)."""
        *own, peak, mean, named = self.weight.split([*self.widths, *[sum(self.widths)] * 2, self.categories], dim=1)
        joined = [torch.cat([reduce(taken) for _, taken in tokens], dim=-1) for reduce in (_peak, _mean)]
        constant = F.linear(joined[0], peak, self.bias) + F.linear(joined[1], mean)  # (B, parts)
        scores = (constant + F.linear(category.to(constant.dtype), named)).unsqueeze(1)
        for (centers, taken), columns in zip(tokens, own, strict=True):
            scores = scores + interpolate(points, centers, F.linear(taken, columns))
        return scores


def _peak(tokens: Tensor) -> Tensor:
    return tokens.amax(1)


def _mean(tokens: Tensor) -> Tensor:
    return tokens.mean(1)
