"""The patch embedding of Inter-MAE: each point of a patch is weighed by its attention to itself.

Shapes: `B` batch, `G` groups, `K` neighbours per group, `C` channels, `R` = B * G * K members.
"""

import torch
from torch import Tensor, nn

from models.layers.norm import BatchNorm, PointwiseConv
from models.losses import at_least_float

GATES = ("diagonal", "attention", "none")


class SelfGate(nn.Module):
    """Weigh the members of each group by the attention A = softmax(q k^T) among them, without scaling and without values.

    "diagonal" (published): member n is multiplied by A[n, n], a number of about 1/K. "attention": member n becomes the mean of
    all members under A[n, :], which the published code seems to have meant. "none": members stay as they are, for ablations.

    Note:
        The published einsum repeats an index and so takes the diagonal; published weights were trained with that, so it is the
        default. Its division by the sum of a row, which is 1, is left out (`tests/parity/test_inter_mae.py`).
    """

    def __init__(self, channels: int, gate: str = "diagonal"):
        super().__init__()
        self.gate = gate
        if gate != "none":
            self.q_conv = PointwiseConv(channels, channels, bias=False)
            self.k_conv = PointwiseConv(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh members (L, K, C) of L groups."""
        if self.gate == "none":
            return x
        logits = at_least_float(torch.bmm(self.q_conv(x), self.k_conv(x).transpose(1, 2)))  # (L, K, K)
        if self.gate == "attention":
            return torch.bmm(logits.softmax(-1).to(x.dtype), x)
        own = (logits.diagonal(dim1=1, dim2=2) - logits.logsumexp(-1)).exp()  # (L, K)
        return own.to(x.dtype).unsqueeze(-1) * x


class GatedPatchEmbed(nn.Module):
    """Embed the members of each group into one token (Liu et al. 2023; the authors' code).

    `first_conv` lifts each member, the gate weighs it, mean and maximum over the group are joined, and `second_conv` makes
    the token. Batch statistics of `first_conv` run over all members, those of `second_conv` over groups. No layer has a bias.

    Args:
        widths: channels after the two layers of `first_conv` and after the first layer of `second_conv`.
        gate: one of `GATES`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: tuple[int, int, int] = (128, 256, 512),
        gate: str = "diagonal",
    ):
        super().__init__()
        first, second, third = widths
        self.first_conv = nn.Sequential(
            PointwiseConv(in_channels, first, bias=False),
            BatchNorm(first),
            nn.ReLU(inplace=True),
            PointwiseConv(first, second, bias=False),
        )
        self.first_trans = SelfGate(second, gate)
        self.second_conv = nn.Sequential(
            PointwiseConv(2 * second, third, bias=False),
            BatchNorm(third),
            nn.ReLU(inplace=True),
            PointwiseConv(third, out_channels, bias=False),
        )

    def forward(self, members: Tensor) -> Tensor:
        """Map the members of each group (B, G, K, C_in) to tokens (B, G, C_out)."""
        B, G, K, C = members.shape
        lift, norm, _, widen = self.first_conv
        lifted = widen(norm.relu(lift(members.reshape(B * G * K, C))))  # (R, second)
        gated = self.first_trans(lifted.view(B * G, K, -1))  # (B*G, K, second)
        pooled = torch.cat([gated.mean(1), gated.amax(1)], dim=-1)  # (B*G, 2 * second)
        join, norm, _, last = self.second_conv
        return last(norm.relu(join(pooled))).view(B, G, -1)
