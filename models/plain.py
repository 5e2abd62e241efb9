"""Point-M2AE pre-training (Zhang et al. 2022) in one file of ordinary PyTorch: to read first, and to test the fast model against.

Everything is written out as the paper has it and nothing is optimised: patches are embedded channels first by `Conv1d` and
`BatchNorm1d` with the group feature repeated and concatenated, every scale runs a farthest point sampling of its own, attention is
written out. `models/point_m2ae.py` has parameters of the same names and computes the same up to rounding
(`tests/models/test_plain.py`); `benchmarks/steps/train_step.py` times the two.

Shapes: `B` batch, `N` points, `G` groups, `K` neighbours per group, `V` visible tokens, `C` channels, `L` hidden patches of the batch;
scale index 0 = finest, lists are indexed by scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.hierarchical import HierarchicalMAEConfig

NEAR_ORIGIN = 1e-3  # squared radius in which the published sampling chooses no points


class PlainPointM2AE(nn.Module):
    """Hide patches at every scale, encode what is visible from fine to coarse, rebuild what is hidden from coarse to fine."""

    def __init__(self, config: HierarchicalMAEConfig):
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
        self.h_decoder.apply(init_decoder)
        self.decoder_pos_embeds = nn.ModuleList(position_embed(dim) for dim in dims)
        self.token_prop = nn.ModuleList(
            PlainPropagation(above + dim, dim, blocks)
            for above, dim, blocks in zip(dims[:-1], dims[1:], config.decoder_up_blocks, strict=False)
        )
        self.decoder_norm = nn.LayerNorm(dims[-1])
        self.rec_head = nn.Conv1d(dims[-1], 3 * config.group_sizes[0], 1)

    def forward(self, points: Tensor, masked: Tensor | None = None) -> Tensor:
        """Return the scalar loss of points (B, N, 3); `masked` (B, G_coarsest) bool replays a mask, True = hidden."""
        centers, neighborhoods, idx = self.group(points)
        masks = self.mask(idx, masked)
        visible = self.h_encoder(centers, neighborhoods, idx, masks)
        tokens, scale = self.decode(centers, masks, visible)  # (B, G, C)
        hidden = tokens[masks[scale]]  # (L, C)
        rebuilt = self.rec_head(hidden.unsqueeze(-1)).view(len(hidden), -1, 3)  # (L, K_0, 3)
        return chamfer(rebuilt.float(), neighborhoods[scale][masks[scale]])

    def group(self, points: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return centres (B, G, 3), members relative to them (B, G, K, 3) and indices of the members in the scale below (B, G, K)."""
        centers, neighborhoods, idx = [], [], []
        below = points
        for groups, size in zip(self.config.num_groups, self.config.group_sizes, strict=True):
            centers.append(rows_of(below, sample(below, groups)))
            idx.append(nearest(centers[-1], below, size)[1])
            neighborhoods.append(rows_of(below, idx[-1]) - centers[-1].unsqueeze(2))
            below = centers[-1]
        return centers, neighborhoods, idx

    def mask(self, idx: list[Tensor], masked: Tensor | None = None) -> list[Tensor]:
        """Hide a share of the coarsest groups, and each finer group that no visible group above holds: (B, G) bool, True = hidden."""
        B, G, _ = idx[-1].shape
        if masked is None:
            ranks = torch.rand(B, G, device=idx[-1].device).argsort(1).argsort(1)
            masked = ranks < int(self.config.mask_ratio * G)
        masks = [masked]
        for groups, members in zip(reversed(self.config.num_groups[:-1]), reversed(idx[1:]), strict=True):
            held = torch.zeros(B, groups, device=masked.device)
            votes = (~masks[0]).float().unsqueeze(-1).expand_as(members)  # of each group for its members
            masks.insert(0, held.scatter_add(1, members.flatten(1), votes.flatten(1)) == 0)
        return masks

    def decode(self, centers: list[Tensor], masks: list[Tensor], visible: list[Tensor]) -> tuple[Tensor, int]:
        """Return normed tokens (B, G, C) of the finest scale that is decoded, and that scale.

        Args:
            visible: normed tokens (B, G, C) of the encoder, zeros at hidden groups.
        """
        scale = len(centers) - 1
        tokens = torch.where(masks[scale].unsqueeze(-1), self.mask_token, visible[scale])
        tokens = self.h_decoder[0](tokens, self.decoder_pos_embeds[0](centers[scale]))
        for stage in range(1, len(self.h_decoder)):
            scale -= 1
            tokens = self.token_prop[stage - 1](centers[scale], centers[scale + 1], visible[scale], tokens)
            tokens = self.h_decoder[stage](tokens, self.decoder_pos_embeds[stage](centers[scale]))
        return self.decoder_norm(tokens), scale


class PlainEncoder(nn.Module):
    """Embed all groups of each scale, run the visible ones through a transformer, hand them to the scale above."""

    def __init__(self, config: HierarchicalMAEConfig):
        super().__init__()
        dims, widths = config.encoder_dims, config.embed_widths
        self.token_embed = nn.ModuleList(
            PlainEmbed(3, dim, *widths) if s == 0 else PlainEmbed(dims[s - 1], dim, dims[s - 1], dims[s - 1], dim)
            for s, dim in enumerate(dims)
        )
        self.encoder_pos_embeds = nn.ModuleList(position_embed(dim) for dim in dims)
        drops = drop_rates(config.drop_path_rate, config.encoder_depths)
        self.encoder_blocks = nn.ModuleList(
            PlainBlocks(dim, config.num_heads, rates) for dim, rates in zip(dims, drops, strict=True)
        )
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.apply(init_encoder)

    def forward(self, centers: list[Tensor], neighborhoods: list[Tensor], idx: list[Tensor], masks: list[Tensor]):
        """Return normed tokens (B, G, C) of each scale, zeros at hidden groups."""
        normed, tokens = [], None
        for scale, hidden in enumerate(masks):
            members = neighborhoods[0] if scale == 0 else rows_of(tokens, idx[scale])
            tokens = self.token_embed[scale](members)  # (B, G, C)
            # Visible tokens to the left, in index order; samples with fewer are filled up with padding, which nobody attends to.
            counts = (~hidden).sum(1)
            order = hidden.long().sort(dim=1, stable=True).indices[:, : counts.max()]
            valid = torch.arange(order.shape[1], device=order.device) < counts.unsqueeze(1)  # (B, V)
            packed = rows_of(tokens, order) * valid.unsqueeze(-1)
            position = self.encoder_pos_embeds[scale](rows_of(centers[scale], order) * valid.unsqueeze(-1))
            forbidden = 1.0 - (valid.unsqueeze(1) & valid.unsqueeze(2)).float()  # (B, V, V)
            packed = self.encoder_blocks[scale](packed, position, forbidden)
            out = self.encoder_norms[scale](packed)
            tokens = tokens.to(packed.dtype).clone()
            tokens[~hidden] = packed[valid]
            normed.append(out.new_zeros(*tokens.shape[:2], out.shape[-1]))
            normed[-1][~hidden] = out[valid]
        return normed


class PlainEmbed(nn.Module):
    """The mini-PointNet: (B, G, K, C_in) to (B, G, C_out)."""

    def __init__(self, in_channels: int, out_channels: int, first: int, second: int, third: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(in_channels, first, 1), nn.BatchNorm1d(first), nn.ReLU(), nn.Conv1d(first, second, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * second, third, 1), nn.BatchNorm1d(third), nn.ReLU(), nn.Conv1d(third, out_channels, 1)
        )

    def forward(self, members: Tensor) -> Tensor:
        """Lift each member, join it with the maximum over its group, and take the maximum again."""
        B, G, K, C = members.shape
        local = self.first_conv(members.reshape(B * G, K, C).transpose(2, 1))  # (B*G, C, K)
        pooled = local.max(2, keepdim=True).values.expand(-1, -1, K)
        return self.second_conv(torch.cat([pooled, local], dim=1)).max(2).values.view(B, G, -1)


class PlainBlocks(nn.Module):
    """Transformer blocks that add the position before every one of them."""

    def __init__(self, channels: int, heads: int, drops: list[float]):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(channels, heads, drop) for drop in drops)

    def forward(self, x: Tensor, position: Tensor, forbidden: Tensor | None = None) -> Tensor:
        """Run (B, L, C); `forbidden` (B, L, L), 1 = this query must not attend to this key."""
        for block in self.blocks:
            x = block(x + position, forbidden)
        return x


class PlainBlock(nn.Module):
    """Attention and MLP, each normed before, dropped for whole samples while training, and added."""

    def __init__(self, channels: int, heads: int, drop: float):
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = PlainMLP(channels)
        self.attn = PlainAttention(channels, heads)

    def forward(self, x: Tensor, forbidden: Tensor | None) -> Tensor:
        """Run (B, L, C)."""
        x = x + self._drop(self.attn(self.norm1(x), forbidden))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop)
        return x * keep.div_(1 - self.drop)


class PlainAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, forbidden: Tensor | None) -> Tensor:
        """Run (B, L, C)."""
        B, L, C = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(-2, -1)) * (C // self.heads) ** -0.5
        if forbidden is not None:
            logits = logits + forbidden.unsqueeze(1) * -100000.0
        return self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, L, C))


class PlainMLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run (B, L, C)."""
        return self.fc2(self.act(self.fc1(x)))


class PlainPropagation(nn.Module):
    """Join coarse tokens, carried over to finer centres by their three nearest neighbours, with the tokens there."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int):
        super().__init__()
        self.fuse = nn.Module()
        self.fuse.net = conv_norm(in_channels, out_channels, nn.GELU())
        self.extraction = nn.Module()
        self.extraction.operation = nn.Sequential(*(PlainResidual(out_channels) for _ in range(blocks)))

    def forward(self, fine: Tensor, coarse: Tensor, skip: Tensor, values: Tensor) -> Tensor:
        """Map values (B, M, C1) at coarse (B, M, 3) and skip (B, G, C0) at fine (B, G, 3) to (B, G, C_out)."""
        distance, idx = nearest(fine, coarse, 3)
        weight = 1.0 / (distance.square() + 1e-8)
        weight = weight / weight.sum(-1, keepdim=True)
        carried = (rows_of(values, idx) * weight.unsqueeze(-1)).sum(2)  # (B, G, C1)
        joined = torch.cat([skip, carried], dim=-1).transpose(1, 2)  # (B, C0 + C1, G)
        return self.extraction.operation(self.fuse.net(joined)).transpose(1, 2)


class PlainResidual(nn.Module):
    """GELU(net2(net1(x)) + x)."""

    def __init__(self, channels: int):
        super().__init__()
        self.net1 = conv_norm(channels, channels, nn.GELU())
        self.net2 = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run (B, C, G)."""
        return F.gelu(self.net2(self.net1(x)) + x)


def conv_norm(in_channels: int, out_channels: int, *after: nn.Module) -> nn.Sequential:
    """Return a 1x1 convolution with batch normalisation, and what follows."""
    return nn.Sequential(nn.Conv1d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels), *after)


def position_embed(channels: int) -> nn.Sequential:
    """Return the MLP that embeds absolute centre coordinates."""
    return nn.Sequential(nn.Linear(3, channels), nn.GELU(), nn.Linear(channels, channels))


def drop_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """Return the drop rates of every stage; they rise linearly over all blocks."""
    rates = torch.linspace(0, rate, sum(depths)).tolist()
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def init_encoder(module: nn.Module) -> None:
    """Start linear layers and convolutions from truncated normal weights of deviation 0.02, without biases."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_decoder(module: nn.Module) -> None:
    """Start linear layers from Xavier's uniform weights, without biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sample(points: Tensor, count: int) -> Tensor:
    """Choose `count` of (B, N, 3) by farthest point sampling from index 0 on, (B, count) int64."""
    B, N, _ = points.shape
    rows = torch.arange(B, device=points.device)
    near = points.square().sum(-1) <= NEAR_ORIGIN
    distance = points.new_full((B, N), 1e10).masked_fill(near, -1.0)
    chosen = torch.zeros(B, count, dtype=torch.int64, device=points.device)
    for step in range(1, count):
        last = points[rows, chosen[:, step - 1]].unsqueeze(1)  # (B, 1, 3)
        distance = torch.minimum(distance, (points - last).square().sum(-1))
        chosen[:, step] = distance.argmax(1)
    return chosen


def rows_of(values: Tensor, idx: Tensor) -> Tensor:
    """Return the rows of (B, N, C) at idx (B, ...)."""
    return values[torch.arange(len(values), device=idx.device).view(-1, *[1] * (idx.dim() - 1)), idx]


def nearest(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return distances and indices (B, Q, k) of the k nearest of the support, nearest first."""
    distance = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.topk(k, dim=-1, largest=False)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared Chamfer distance of patches (L, n, 3) and (L, m, 3), both ways added."""
    distance = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)  # (L, n, m)
    return distance.min(2).values.mean() + distance.min(1).values.mean()
