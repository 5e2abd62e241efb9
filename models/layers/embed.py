"""Embeddings: a mini-PointNet turns each patch into a token, an MLP turns each centre into a position.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `C` channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.norm import BatchNorm, PointwiseConv


class PatchEmbed(nn.Module):
    """Embed the members of each group into one token (mini-PointNet; Pang et al. 2022, Sec. 3.1).

    `first_conv` lifts each member, the maximum over the group joins it as [group, member], `second_conv` and another maximum
    give the token. Batch statistics run over all members of all groups.

    Args:
        in_channels: channels of a member: 3 for centre-relative points, the width of the scale below for tokens.
        widths: channels after the two layers of `first_conv` and after the first layer of `second_conv`.

    Note:
        The group half of `second_conv`'s first layer is the same for all K members, so it is multiplied once per group and
        added. This is exact up to rounding and saves a third of the embedding's work (`tests/models/test_layers.py`).
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
        local = self.first_conv(members.reshape(B * G * K, C))  # (B*G*K, second)
        pooled = local.view(B * G, K, -1).amax(1)  # (B*G, second)

        join, rest = self.second_conv[0], self.second_conv[1:]
        group_weight, member_weight = join.weight.squeeze(-1).split(pooled.shape[1], dim=1)
        joined = F.linear(local, member_weight).view(B * G, K, -1)  # (B*G, K, third)
        joined = joined + F.linear(pooled, group_weight, join.effective_bias()).unsqueeze(1)
        tokens = rest(joined.view(B * G * K, -1))  # (B*G*K, C_out)
        return tokens.view(B, G, K, -1).amax(2)  # (B, G, C_out)


def position_embed(out_channels: int, hidden: int | None = None) -> nn.Sequential:
    """Return the MLP that embeds absolute centre coordinates (..., 3) as (..., C)."""
    hidden = hidden or out_channels
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, out_channels))
