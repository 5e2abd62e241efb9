"""Embeddings: a mini-PointNet turns each patch into a token, an MLP turns each centre into a position.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `C` channels.
"""

from torch import Tensor, nn

from extensions import patch_embed
from models.layers.norm import BatchNorm, PointwiseConv


class PatchEmbed(nn.Module):
    """Embed the members of each group into one token (mini-PointNet; Pang et al. 2022, Sec. 3.1).

    `first_conv` lifts each member, the maximum over the group joins it as [group, member], `second_conv` and another maximum
    give the token. Batch statistics run over all members of all groups.

    Args:
        in_channels: channels of a member: 3 for centre-relative points, the width of the scale below for tokens.
        widths: channels after the two layers of `first_conv` and after the first layer of `second_conv`.
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
        return patch_embed(members, *self.layers())

    def layers(self) -> tuple[tuple[PointwiseConv, ...], tuple[BatchNorm, BatchNorm]]:
        """Return the four convolutions and the two norms, in the order in which they are applied."""
        lift, first, _, widen = self.first_conv
        join, second, _, last = self.second_conv
        return (lift, widen, join, last), (first, second)


def position_embed(out_channels: int, hidden: int | None = None) -> nn.Sequential:
    """Return the MLP that embeds absolute centre coordinates (..., 3) as (..., C)."""
    hidden = hidden or out_channels
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, out_channels))
