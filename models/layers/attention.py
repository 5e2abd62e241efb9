"""Multi-head self-attention.

Shapes: `B` batch, `L` tokens, `C` channels, `H` heads.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import attention
from extensions.m2ae_ops import backend

# A forbidden pair gets this added to its logit. Finite on purpose: a row in which everything is forbidden stays finite too.
FORBIDDEN = -100000.0
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Attention(nn.Module):
    """Self-attention with a bias-free joint projection laid out as (q | k | v, heads, head channels).

    Note:
        Under bf16 autocast on the CPU the projections run in bf16 and what lies between them in fp32: that is more exact, and for heads
        this narrow faster.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"Attention: {channels} channels do not divide by {num_heads} heads; change num_heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, counts: Tensor | None = None, attend: Tensor | None = None
    ) -> Tensor:
        """Attend within (B, L, C).

        Args:
            bias: added to the logits; broadcasts to (B, H, L, L).
            counts: (B,) int64, for a bias that only forbids the keys after the first `counts` of each sample: how many these are. The rows
                after them are padding then, whose output means nothing.
            attend: (B, L, L) bool, True = may attend, in the place of a bias; for callers that found `can_fuse` true.
        """
        B, L, C = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.num_heads, C // self.num_heads)
        if (bias is None or counts is not None) and can_fuse(qkv):
            return self.proj(attention(qkv, counts, attend))
        if attend is not None:
            bias = attention_bias(attend)
        wide = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
        q, k, v = (qkv.float() if wide else qkv).permute(2, 0, 3, 1, 4)
        bias = None if bias is None else bias.to(q.dtype)
        with torch.autocast("cpu", enabled=False) if wide else contextlib.nullcontext():
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(B, L, C).to(qkv.dtype))


def can_fuse(qkv: Tensor) -> bool:
    """Return whether our own kernel serves these heads, or those made of tokens: on the CPU, eager, with AVX2 at least.

    Else PyTorch's is the faster one.
    """
    return (
        qkv.device.type == "cpu"
        and qkv.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and backend() in ("compiled (avx2)", "compiled (avx512)")
    )


def attention_bias(attend: Tensor) -> Tensor:
    """Turn (B, L, L) or (B, 1, L) bool, True = may attend, into an additive bias with a head dimension."""
    bias = torch.zeros(attend.shape, device=attend.device).masked_fill_(~attend, FORBIDDEN)
    return bias.unsqueeze(1)  # (B, 1, L or 1, L)
