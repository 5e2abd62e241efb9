"""A plain Point-M2AE, the yardstick of the step's speed: what one writes from the paper in ordinary PyTorch. Never optimised.

Laid out as published: patches are embedded channels first by `Conv1d` and `BatchNorm1d` with the group feature repeated and
concatenated, every scale runs a farthest point sampling of its own, attention is written out. The loops of the published code over the
samples of a batch, and its CUDA extensions, are vectorised PyTorch here. Names of parameters are those of `models.PointM2AE`, which it
equals up to rounding (`tests/benchmarks/test_baseline.py`).

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `V` visible tokens, `C` channels; scale index 0 = finest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.init import init_truncated_normal, init_xavier
from models.masking import back_project, random_mask
from models.point_m2ae import PointM2AEConfig

NEAR_ORIGIN = 1e-3  # squared radius in which the published sampling chooses no points


def sample(points: Tensor, count: int) -> Tensor:
    """Choose `count` of (B, N, 3) by farthest point sampling from index 0 on, (B, count) int64."""
    B, N, _ = points.shape
    rows = torch.arange(B)
    near = points.square().sum(-1) <= NEAR_ORIGIN
    distance = torch.full((B, N), 1e10).masked_fill(near, -1.0)
    chosen = torch.zeros(B, count, dtype=torch.int64)
    for step in range(1, count):
        last = points[rows, chosen[:, step - 1]].unsqueeze(1)  # (B, 1, 3)
        distance = torch.minimum(distance, (points - last).square().sum(-1))
        chosen[:, step] = distance.argmax(1)
    return chosen


def rows_of(values: Tensor, idx: Tensor) -> Tensor:
    """Return the rows of (B, N, C) at idx (B, ...)."""
    return values[torch.arange(len(values)).view(-1, *[1] * (idx.dim() - 1)), idx]


def nearest(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return distances and indices (B, Q, k) of the k nearest of the support, nearest first."""
    distance = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.topk(k, dim=-1, largest=False)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Chamfer distance of patches (L, n, 3) and (L, m, 3), both ways added."""
    distance = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)  # (L, n, m)
    return distance.min(2).values.mean() + distance.min(1).values.mean()


class ConvEmbed(nn.Module):
    """The mini-PointNet over (B*G, C, K)."""

    def __init__(self, in_channels: int, out_channels: int, first: int, second: int, third: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(in_channels, first, 1), nn.BatchNorm1d(first), nn.ReLU(), nn.Conv1d(first, second, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * second, third, 1), nn.BatchNorm1d(third), nn.ReLU(), nn.Conv1d(third, out_channels, 1)
        )

    def forward(self, members: Tensor) -> Tensor:
        B, G, K, C = members.shape
        local = self.first_conv(members.reshape(B * G, K, C).transpose(2, 1))  # (B*G, C, K)
        pooled = local.max(2, keepdim=True).values.expand(-1, -1, K)
        return self.second_conv(torch.cat([pooled, local], dim=1)).max(2).values.view(B, G, -1)


class PlainAttention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, forbidden: Tensor | None) -> Tensor:
        B, L, C = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-2, -1)) * (C // self.heads) ** -0.5
        if forbidden is not None:
            logits = logits + forbidden.unsqueeze(1) * -100000.0
        return self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, L, C))


class PlainMLP(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class PlainBlock(nn.Module):
    def __init__(self, channels: int, heads: int, drop: float):
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = PlainMLP(channels)
        self.attn = PlainAttention(channels, heads)

    def forward(self, x: Tensor, forbidden: Tensor | None) -> Tensor:
        x = x + self._drop(self.attn(self.norm1(x), forbidden))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop)
        return x * keep.div_(1 - self.drop)


class PlainBlocks(nn.Module):
    def __init__(self, channels: int, heads: int, drops: list[float]):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(channels, heads, drop) for drop in drops)

    def forward(self, x: Tensor, position: Tensor, forbidden: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x + position, forbidden)
        return x


def conv_norm(in_channels: int, out_channels: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels), *after)


class PlainResidual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.net1 = conv_norm(channels, channels, nn.GELU())
        self.net2 = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.net2(self.net1(x)) + x)


class PlainPropagation(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, blocks: int):
        super().__init__()
        self.fuse = nn.Module()
        self.fuse.net = conv_norm(in_channels, out_channels, nn.GELU())
        self.extraction = nn.Module()
        self.extraction.operation = nn.Sequential(*(PlainResidual(out_channels) for _ in range(blocks)))

    def forward(self, fine: Tensor, coarse: Tensor, skip: Tensor, values: Tensor) -> Tensor:
        distance, idx = nearest(fine, coarse, 3)
        weight = 1.0 / (distance.square() + 1e-8)
        weight = weight / weight.sum(-1, keepdim=True)
        carried = (rows_of(values, idx) * weight.unsqueeze(-1)).sum(2)  # (B, G, C)
        joined = torch.cat([skip, carried], dim=-1).transpose(1, 2)  # (B, C, G)
        return self.extraction.operation(self.fuse.net(joined)).transpose(1, 2)


def position_embed(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, channels), nn.GELU(), nn.Linear(channels, channels))


def drop_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """Return the rates of every stage; they rise linearly over all blocks."""
    rates = torch.linspace(0, rate, sum(depths)).tolist()
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


class PlainEncoder(nn.Module):
    """Pre-training only: visible tokens attend to each other, padding to itself."""

    def __init__(self, config: PointM2AEConfig):
        super().__init__()
        dims, widths = config.encoder_dims, config.embed_widths
        self.token_embed = nn.ModuleList(
            ConvEmbed(3, dim, *widths) if s == 0 else ConvEmbed(dims[s - 1], dim, dims[s - 1], dims[s - 1], dim)
            for s, dim in enumerate(dims)
        )
        self.encoder_pos_embeds = nn.ModuleList(position_embed(dim) for dim in dims)
        drops = drop_rates(config.drop_path_rate, config.encoder_depths)
        self.encoder_blocks = nn.ModuleList(
            PlainBlocks(dim, config.num_heads, rates) for dim, rates in zip(dims, drops, strict=True)
        )
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.apply(init_truncated_normal)

    def forward(self, centers: list[Tensor], neighborhoods: list[Tensor], idx: list[Tensor], masked: list[Tensor]):
        """Return normed packed tokens (B, V, C), their groups (B, V) and which are valid (B, V), lists over the scales."""
        seen, orders, valids = [], [], []
        tokens = None
        for scale, hidden in enumerate(masked):
            members = neighborhoods[0] if scale == 0 else rows_of(tokens, idx[scale])
            tokens = self.token_embed[scale](members)
            counts = (~hidden).sum(1)
            order = hidden.long().sort(dim=1, stable=True).indices[:, : counts.max()]
            valid = torch.arange(order.shape[1]) < counts.unsqueeze(1)
            packed = rows_of(tokens, order) * valid.unsqueeze(-1)
            position = self.encoder_pos_embeds[scale](rows_of(centers[scale], order) * valid.unsqueeze(-1))
            forbidden = 1.0 - (valid.unsqueeze(1) & valid.unsqueeze(2)).float()  # (B, V, V)
            out = self.encoder_blocks[scale](packed, position, forbidden)
            tokens = tokens.to(out.dtype).clone()
            tokens[~hidden] = out[valid]
            seen.append(out), orders.append(order), valids.append(valid)
        return [norm(x) for norm, x in zip(self.encoder_norms, seen, strict=True)], orders, valids


class PlainPointM2AE(nn.Module):
    """Point-M2AE pre-training with clean masks and padding; parameters as `models.PointM2AE`."""

    def __init__(self, config: PointM2AEConfig):
        super().__init__()
        self.config = config
        dims = config.decoder_dims
        self.mask_token = nn.Parameter(torch.zeros(1, config.encoder_dims[-1]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.h_encoder = PlainEncoder(config)
        drops = drop_rates(config.drop_path_rate, config.decoder_depths)
        self.h_decoder = nn.ModuleList(
            PlainBlocks(dim, config.num_heads, rates) for dim, rates in zip(dims, drops, strict=True)
        )
        self.h_decoder.apply(init_xavier)
        self.decoder_pos_embeds = nn.ModuleList(position_embed(dim) for dim in dims)
        self.token_prop = nn.ModuleList(
            PlainPropagation(above + dim, dim, blocks)
            for above, dim, blocks in zip(dims[:-1], dims[1:], config.decoder_up_blocks, strict=False)
        )
        self.decoder_norm = nn.LayerNorm(dims[-1])
        self.rec_head = nn.Conv1d(dims[-1], 3 * config.group_sizes[0], 1)

    def group(self, points: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return centres, neighbourhoods and member indices of every scale."""
        centers, neighborhoods, idx = [], [], []
        below = points
        for groups, size in zip(self.config.num_groups, self.config.group_sizes, strict=True):
            centers.append(rows_of(below, sample(below, groups)))  # (B, G, 3)
            idx.append(nearest(centers[-1], below, size)[1])  # (B, G, K)
            neighborhoods.append(rows_of(below, idx[-1]) - centers[-1].unsqueeze(2))  # (B, G, K, 3)
            below = centers[-1]
        return centers, neighborhoods, idx

    def forward(self, points: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the scalar loss of points (B, N, 3); `masked` (B, G_coarsest) bool replays a mask, True = hidden."""
        config = self.config
        centers, neighborhoods, idx = self.group(points)
        if masked is None:
            masked = random_mask(len(points), config.num_groups[-1], config.mask_ratio)
        scales = back_project(masked, idx, config.num_groups)
        seen, _, valids = self.h_encoder(centers, neighborhoods, idx, scales)

        # Coarsest scale: visible centres first, then masked ones with the mask token.
        B, scale = len(points), len(centers) - 1
        order = masked.long().sort(dim=1, stable=True).indices
        coarse = rows_of(centers[scale], order)
        hidden = order.shape[1] - seen[scale].shape[1]
        tokens = torch.cat([seen[scale], self.mask_token.to(seen[scale].dtype).expand(B, hidden, -1)], dim=1)
        tokens = self.h_decoder[0](tokens, self.decoder_pos_embeds[0](coarse))
        for stage in range(1, len(self.h_decoder)):
            scale -= 1
            fine = centers[scale]
            skip = seen[scale].new_zeros(*fine.shape[:2], seen[scale].shape[-1])
            skip[~scales[scale]] = seen[scale][valids[scale]]
            tokens = self.token_prop[stage - 1](fine, coarse, skip, tokens)
            tokens = self.h_decoder[stage](tokens, self.decoder_pos_embeds[stage](fine))
            coarse = fine
        tokens = self.decoder_norm(tokens)[scales[scale]]  # (L, C)
        rebuilt = self.rec_head(tokens.unsqueeze(0).transpose(1, 2)).transpose(1, 2)  # (1, L, 3 * K_0)
        return chamfer(rebuilt.reshape(len(tokens), -1, 3).float(), neighborhoods[scale][scales[scale]])
