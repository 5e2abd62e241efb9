"""Embeddings: a mini-PointNet turns each patch into a token, an MLP turns each centre into a position.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `C` channels, `R` = B * G * K members.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import fused_ready, mini_pointnet
from models.layers.members import LiftMembers, PeakOfGroups, can_fuse, encode_members
from models.layers.norm import BatchNorm, PointwiseConv


class PatchEmbed(nn.Module):
    """Embed the members of each group into one token (mini-PointNet; Pang et al. 2022, Sec. 3.1).

    `first_conv` lifts each member, the maximum over the group joins it as [group, member], `second_conv` and another maximum
    give the token. Batch statistics run over all members of all groups.

    Args:
        in_channels: channels of a member: 3 for centre-relative points, the width of the scale below for tokens.
        widths: channels after the two layers of `first_conv` and after the first layer of `second_conv`.

    Note:
        Two identities save more than half of the embedding's work, exact up to rounding (`tests/models/test_layers.py`).
        The group half of `second_conv`'s first layer is the same for all K members, so it is multiplied once per group and
        added. The member half follows on `first_conv`'s last layer with nothing between, so both are one product with the
        product of their weights, from the narrower hidden rows. On the CPU the rest is fused as `members.py` says, on a GPU by
        `extensions/m2ae_ops/fused`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, widths: tuple[int, int, int] = (128, 256, 512)):
        super().__init__()
        first, second, third = widths
        self.first_conv = nn.Sequential(
            PointwiseConv(in_channels, first, before_norm=True),
            BatchNorm(first),
            nn.ReLU(inplace=True),
            PointwiseConv(first, second, before_norm=True),
        )
        self.second_conv = nn.Sequential(
            PointwiseConv(2 * second, third, before_norm=True),
            BatchNorm(third),
            nn.ReLU(inplace=True),
            PointwiseConv(third, out_channels),
        )

    def forward(self, members: Tensor) -> Tensor:
        """Map the members of each group (B, G, K, C_in) to tokens (B, G, C_out)."""
        B, G, K, C = members.shape
        rows = members.reshape(B * G * K, C)
        if rows.is_cuda and self._has_kernels(rows, K):
            tokens = self._in_one_op(rows, K, _compute_dtype(rows))
        elif not can_fuse(rows, K) or (not self.training and self._needs_gradient(rows)):
            tokens = self._plain(rows, K)
        elif self.training:
            tokens = self._fused(rows, K)
        else:
            tokens = encode_members(rows, K, self.first_conv, self.second_conv, *self._joining())
        return tokens.view(B, G, -1)

    def _joining(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what makes the joined rows: weight on the hidden rows, weight on the group's maximum (without bias), bias."""
        widen, join = self.first_conv[3], self.second_conv[0]
        with torch.autocast(widen.weight.device.type, enabled=False):
            group, member = join.weight.squeeze(-1).split(widen.out_channels, dim=1)
            both = (group + member) @ widen.effective_bias() + join.effective_bias()
            return member @ widen.weight.squeeze(-1), group, both

    def _needs_gradient(self, rows: Tensor) -> bool:
        """Return whether anything flows back; nothing does through a frozen encoder."""
        return torch.is_grad_enabled() and (rows.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _has_kernels(self, rows: Tensor, K: int) -> bool:
        """Return whether the kernels for a GPU serve these members."""
        norms = (self.first_conv[1], self.second_conv[1])
        no_gradient = not self._needs_gradient(rows)
        points = rows.shape[1] == 3
        if any(norm.shared for norm in norms) or not (
            no_gradient or (self.training and not (points and rows.requires_grad))
        ):
            return False
        outputs = (self.first_conv[0], self.first_conv[3], self.second_conv[0], self.second_conv[3])
        widths = tuple(layer.out_channels for layer in outputs)
        return rows.shape[0] > 1 and fused_ready(rows.device, _compute_dtype(rows), widths, points, int(K))

    def _in_one_op(self, rows: Tensor, K: int, dtype: torch.dtype) -> Tensor:
        lift, first, _, widen = self.first_conv
        _, second, _, last = self.second_conv
        from_hidden, from_group, bias = self._joining()
        norms, biases, stats = (first, second), (lift.bias.detach(), bias.detach()), None
        if not self.training:
            # The op leaves out the biases before its norms, so what the norms subtract is without them too.
            stats = tuple(
                torch.stack([norm.running_mean - left_out, norm.running_var])
                for norm, left_out in zip(norms, biases, strict=True)
            )
        tokens, *found = mini_pointnet(
            rows,
            lift=lift.weight.squeeze(-1),
            widen=widen.weight.squeeze(-1),
            from_hidden=from_hidden,
            from_group=from_group,
            last=last.weight.squeeze(-1),
            affines=tuple(torch.stack([norm.weight, norm.bias]) for norm in norms),
            k=K,
            eps=(first.eps, second.eps),
            stats=stats,
            dtype=dtype,
        )
        if self.training:
            for norm, left_out, (mean, variance) in zip(norms, biases, found, strict=True):
                norm.track(mean + left_out, variance, rows.shape[0])
        return self._finish(tokens, bias)

    def _finish(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Add the last bias; `bias` is that of the joined rows."""
        # Statistics take the earlier biases away; being no part of the graph, they get their zero gradient from this term.
        unused = bias.sum() + self.first_conv[0].effective_bias().sum()
        return tokens + self.second_conv[3].bias.to(tokens.dtype) + 0.0 * unused

    def _plain(self, rows: Tensor, K: int) -> Tensor:
        hidden = self.first_conv[:3](rows)  # (R, first)
        pooled = (
            F.linear(hidden, self.first_conv[3].weight.squeeze(-1)).view(-1, K, self.first_conv[3].out_channels).amax(1)
        )
        from_hidden, from_group, bias = self._joining()
        joined = F.linear(hidden, from_hidden).view(len(pooled), K, -1)  # (B*G, K, third)
        joined = joined + F.linear(pooled, from_group, bias).unsqueeze(1)
        tokens = self.second_conv[1:](joined.flatten(0, 1))  # (R, C_out)
        return tokens.view(len(pooled), K, -1).amax(1)  # (B*G, C_out)

    def _fused(self, rows: Tensor, K: int) -> Tensor:
        lift, norm, _, widen = self.first_conv
        norm.check_rows(len(rows))
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else rows.dtype
        if lift.in_channels == 3 and not rows.requires_grad:
            weight = lift.weight.squeeze(-1)
            hidden, mean, variance, count = LiftMembers.apply(
                rows, weight, norm.weight, norm.bias, norm.eps, norm.shared, dtype
            )
            norm.track(mean + lift.bias.detach(), variance, count)
        else:
            hidden = norm.relu(lift(rows)).to(dtype)
        from_hidden, from_group, bias = self._joining()
        _, norm, _, last = self.second_conv
        tokens, mean, variance, count = PeakOfGroups.apply(
            hidden,
            widen.weight.squeeze(-1),
            from_hidden,
            from_group,
            norm.weight,
            norm.bias,
            last.weight.squeeze(-1),
            K,
            norm.eps,
            norm.shared,
        )
        norm.track(mean + bias.detach(), variance, count)
        return self._finish(tokens, bias)


def _compute_dtype(rows: Tensor) -> torch.dtype:
    """Return the dtype of products: that of autocast, where it is on."""
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def position_embed(out_channels: int, hidden: int | None = None) -> nn.Sequential:
    """Return the MLP that embeds absolute centre coordinates (..., 3) as (..., C)."""
    hidden = hidden or out_channels
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, out_channels))
