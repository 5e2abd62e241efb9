"""Multi-head self-attention.

Shapes: `B` batch, `L` tokens, `C` channels, `H` heads.
"""

from torch import Tensor, nn

from extensions import attention


class Attention(nn.Module):
    """Self-attention with a bias-free joint projection laid out as (q | k | v, heads, head channels)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"Attention: {channels} channels do not divide by {num_heads} heads; change num_heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Attend within (B, L, C).

        Args:
            valid: (B, L) bool, True = real token, real ones first; the output of others means nothing. None: all are real.
            attend: (B, L, L) bool, True = this query may attend to this key. None: all pairs may.
        """
        B, L, C = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.num_heads, C // self.num_heads)
        return self.proj(attention(qkv, valid, attend))
