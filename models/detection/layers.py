"""Layers of 3DETR under their published names: set abstraction, attention, encoder and decoder layers, embeddings.

Shapes: `B` batch, `N` points or tokens below, `G` groups, `S` members of a group, `L` tokens, `C` channels, `H` heads, `D` channels of a
head, `K` neighbours.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import attention, ball_query, gather
from models.layers.drop import Dropout
from models.layers.norm import BatchNorm, PointwiseConv


class SharedConv(nn.Conv2d):
    """A 1x1 convolution without bias on the last dimension; the weight keeps the published shape (out, in, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight.flatten(1))


class _Norm(nn.Module):
    """A batch norm one name deeper, as published."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = BatchNorm(channels)


class _SharedLayer(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = SharedConv(in_channels, out_channels)
        self.bn = _Norm(out_channels)


class SetAbstraction(nn.Module):
    """Turn each ball of points into one token: a shared MLP, then the maximum over the members (Qi et al. 2017).

    Args:
        radius: of the balls, by which relative coordinates are divided.
        widths: channels that members have besides their coordinates, and those after each layer.
    """

    def __init__(self, radius: float, widths: Sequence[int]):
        super().__init__()
        self.radius = radius
        widths = [3 + widths[0], *widths[1:]]
        layers = {f"layer{number}": _SharedLayer(*pair) for number, pair in enumerate(pairwise(widths))}
        self.mlp_module = nn.Sequential()
        for name, layer in layers.items():
            self.mlp_module.add_module(name, layer)

    def forward(self, relative: Tensor, features: Tensor | None = None, idx: Tensor | None = None) -> Tensor:
        """Return tokens (B, G, C).

        Args:
            relative: (B, G, S, 3) members relative to their centres, in the unit of the radius.
            features: (B, N, C_in) of what the members are chosen from.
            idx: (B, G, S) int64, the members.
        """
        B, G, S, _ = relative.shape
        rows = relative / self.radius
        if features is not None:
            rows = torch.cat([rows, gather(features, idx)], dim=-1)
        rows = rows.view(B * G * S, -1)
        for layer in self.mlp_module:
            rows = layer.bn.bn.relu(layer.conv(rows))
        return rows.view(B, G, S, -1).amax(2)


class Near(NamedTuple):
    """The few tokens that each token attends to."""

    idx: Tensor  # (B, L, K) int64
    present: Tensor  # (B, L, K) bool, True = a neighbour, False = filling


@torch.no_grad()
def within_radius(centers: Tensor, radius: float, most: int) -> Near | Tensor:
    """Return which tokens at centres (B, L, 3) are nearer to each other than a radius.

    As lists where no token has more than `most` neighbours, itself among them; else as a mask (B, L, L) bool. Distances are exact.
    """
    count = min(most + 1, centers.shape[1])
    idx = ball_query(centers, centers, radius, count)  # in index order, filled up with the first one
    present = torch.cat([torch.ones_like(idx[..., :1], dtype=torch.bool), idx[..., 1:] != idx[..., :1]], dim=-1)
    largest = int(present.sum(-1).amax())
    if largest > most:
        return distances(centers) < radius
    return Near(idx[..., :largest], present[..., :largest])


def distances(centers: Tensor) -> Tensor:
    """Return the distances (B, L, L) of centres (B, L, 3), without the rounding of the matrix product."""
    return torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")


class PackedAttention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`: one packed projection, (q | k | v, heads, head channels).

    Args:
        dropout: of the weights of attention while training.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        self.drop = Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, allowed: Near | Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Attend within (B, L, C).

        Args:
            allowed: what each token may attend to: lists, or (B, L, L) bool; None = everything.
            valid: (B, L) bool, True = real token, real ones first; not together with lists.
        """
        B, L, C = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(B, L, 3, self.num_heads, C // self.num_heads)
        if isinstance(allowed, Near):
            return self.out_proj(self._among(qkv, allowed))
        if self.training and self.drop.p > 0:
            if valid is not None:
                both = valid.unsqueeze(1)
                allowed = both.expand(B, L, L) if allowed is None else allowed & both
            return self.out_proj(self._weigh(*qkv.unbind(2), allowed))
        return self.out_proj(attention(qkv, valid, allowed))

    def across(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from queries (B, L, C) to keys and values (B, M, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1))  # (B, L or M, H, D)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        if self.training and self.drop.p > 0:
            return self.out_proj(self._weigh(q, k, v))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _weigh(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend with weights that drop out; operands (B, L, H, D), `allowed` (B, L, M) bool."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, L, M)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.unsqueeze(1), torch.finfo(logits.dtype).min)
        weights = self.drop(logits.softmax(dim=-1)).to(v.dtype)
        return (weights @ v).transpose(1, 2).flatten(2)

    def _among(self, qkv: Tensor, near: Near) -> Tensor:
        """Attend from each token to the ones of its list."""
        B, L, _, H, D = qkv.shape
        q = qkv[:, :, 0] * D**-0.5  # (B, L, H, D)
        k, v = gather(qkv[:, :, 1:].flatten(2), near.idx).view(B, L, -1, 2, H, D).unbind(3)  # (B, L, K, H, D)
        logits = torch.einsum("blhd,blkhd->blhk", q, k)
        logits = logits.masked_fill(~near.present.unsqueeze(2), torch.finfo(logits.dtype).min)
        weights = self.drop(logits.softmax(dim=-1)).to(v.dtype)
        return torch.einsum("blhk,blkhd->blhd", weights, v).flatten(2)


class EncoderLayer(nn.Module):
    """x + Drop(attention of LN(x)), then x + Drop(MLP of LN(x)); no position takes part, as published."""

    def __init__(self, channels: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = PackedAttention(channels, num_heads, dropout)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.drop = Dropout(dropout)
        xavier(self)

    def forward(self, x: Tensor, allowed: Near | Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Run (B, L, C); `allowed` and `valid` as in `PackedAttention`."""
        x = x + self.drop(self.self_attn(self.norm1(x), allowed, valid))
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(self.norm2(x))))))


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to the memory, then an MLP; positions are added to queries and keys."""

    def __init__(self, channels: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = PackedAttention(channels, num_heads, dropout)
        self.multihead_attn = PackedAttention(channels, num_heads, dropout)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.drop = Dropout(dropout)
        xavier(self)

    def forward(self, x: Tensor, query_position: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        """Run the stream (B, Q, C).

        Args:
            query_position: (B, Q, C).
            memory: (B, L, C).
            keys: (B, L, C), the memory plus its positions.
        """
        own = self.norm1(x)
        x = x + self.drop(self.self_attn.across(own + query_position, own + query_position, own))
        x = x + self.drop(self.multihead_attn.across(self.norm2(x) + query_position, keys, memory))
        return x + self.drop(self.linear2(self.drop(F.relu(self.linear1(self.norm3(x))))))


class Decoder(nn.Module):
    """Decoder layers and the one norm that is applied to the output of each."""

    def __init__(self, depth: int, channels: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, num_heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)

    def forward(self, memory: Tensor, memory_position: Tensor, query_position: Tensor) -> Tensor:
        """Return the normed output of each layer, (B, layers, Q, C); the stream starts at zeros."""
        stream, keys = torch.zeros_like(query_position), memory + memory_position
        outputs = []
        for layer in self.layers:
            stream = layer(stream, query_position, memory, keys)
            outputs.append(self.norm(stream))
        return torch.stack(outputs, dim=1)


def xavier(module: nn.Module) -> None:
    """Initialise every tensor with more than one axis Xavier uniform."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class PointwiseMLP(nn.Module):
    """Convolutions of kernel 1 over tokens, each with ReLU, under the published numbers of their layers.

    Args:
        widths: channels before the first and after each layer.
        norm: batch norm before the ReLU; convolutions have no bias then.
        dropout: after the ReLU; None = no such layer.
        out: channels of a last convolution with bias and nothing after it; None = there is none.
    """

    def __init__(self, widths: Sequence[int], *, norm: bool, dropout: float | None = None, out: int | None = None):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers.append(PointwiseConv(before, after, bias=not norm))
            layers += [BatchNorm(after)] if norm else []
            layers.append(nn.ReLU())
            layers += [] if dropout is None else [Dropout(dropout)]
        layers += [] if out is None else [PointwiseConv(widths[-1], out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ..., in) to (B, ..., out); batch statistics run over all rows."""
        normed = False
        for layer in self.layers:
            if isinstance(layer, BatchNorm):
                x = layer.relu(x.flatten(0, -2)).view(x.shape)
                normed = True
            elif not (isinstance(layer, nn.ReLU) and normed):
                x, normed = layer(x), False
        return x


class FourierEmbedding(nn.Module):
    """Embed points as sines and cosines of random projections of their normalised coordinates (Tancik et al. 2020).

    The projections are a buffer of the checkpoint, drawn at construction.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("gauss_B", torch.randn(3, channels // 2))

    @torch.no_grad()
    def forward(self, normalized: Tensor) -> Tensor:
        """Map (B, L, 3) to (B, L, C), sines first."""
        with torch.autocast(normalized.device.type, enabled=False):  # half precision would lose the phase
            projected = (2 * math.pi * normalized).to(self.gauss_B.dtype) @ self.gauss_B
        return torch.cat([projected.sin(), projected.cos()], dim=-1)
