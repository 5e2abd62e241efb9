"""Multi-head self-attention.

Shapes: `B` batch, `L` tokens, `C` channels, `H` heads.
"""

import torch
from torch import Tensor, nn

from extensions import attention
from models.layers.drop import Dropout


class Attention(nn.Module):
    """Self-attention with a joint projection laid out as (q | k | v, heads, head channels).

    Args:
        qkv_bias: whether the joint projection has a bias.
        dropout: of the output while training.
        attention_dropout: of the weights of attention while training.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"Attention: {channels} channels do not divide by {num_heads} heads; change num_heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.drop, self.attention_drop = Dropout(dropout), Dropout(attention_dropout)

    def forward(self, x: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """Attend within (B, L, C).

        Args:
            valid: (B, L) bool, True = real token, real ones first; the output of others means nothing. None: all are real.
            attend: (B, L, L) bool, True = this query may attend to this key. None: all pairs may.
        """
        B, L, C = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.num_heads, C // self.num_heads)
        if self.training and self.attention_drop.p > 0:
            return self.drop(self.proj(self._attend_to_some(qkv, valid, attend)))
        return self.drop(self.proj(attention(qkv, valid, attend)))

    def _attend_to_some(self, qkv: Tensor, valid: Tensor | None, attend: Tensor | None) -> Tensor:
        """Attend with weights that drop out: (B, L, 3, H, C / H) to (B, L, C)."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, L, C / H)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, L, L)
        for allowed in (None if valid is None else valid[:, None, None], None if attend is None else attend[:, None]):
            if allowed is not None:
                logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
        weights = self.attention_drop(logits.softmax(dim=-1))
        return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
