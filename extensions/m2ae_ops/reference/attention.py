"""Plain PyTorch forms of self-attention. Legend: B batch, L tokens, H heads, D channels of a head.

Everything is computed in float32 at least and stored in the dtype of the projection.
"""

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
UNATTENDED = -1e30  # below all logits, in base 2; what does not attend gets twice that


def _parts(qkv: Tensor, counts: Tensor | None, attend: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, v (B, H, L, D) with zeros in the padding, logits (B, H, L, L) in base 2 and real (B, 1, L, 1), True = no padding."""
    B, L, _, _, D = qkv.shape
    real = torch.ones(B, L, dtype=torch.bool, device=qkv.device)
    if counts is not None:
        real = torch.arange(L, device=qkv.device) < counts.unsqueeze(1)
    wide = qkv if qkv.dtype == torch.float64 else qkv.float()
    q, k, v = torch.where(real.view(B, L, 1, 1, 1), wide, 0).permute(2, 0, 3, 1, 4)
    logits = (q @ k.transpose(-1, -2)) * (LOG2_E / math.sqrt(D))
    # Finite, so that queries that attend to nothing have no NaN either.
    sees = real.view(B, 1, 1, L) if attend is None else real.view(B, 1, 1, L) & attend.unsqueeze(1)
    logits = logits.masked_fill(~sees, 2 * UNATTENDED)
    return q, k, v, logits, real.view(B, 1, L, 1)


def attention(qkv: Tensor, counts: Tensor | None, attend: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return softmax(q k^T / sqrt(D)) v as (B, L, H * D), and what `attention_backward` needs of each row.

    The latter are (B, H, 2, L): the largest logit times log2(e), and the sum of exp(logit - largest); zeros in the padding.
    """
    _, _, v, logits, real = _parts(qkv, counts, attend)
    largest = logits.detach().amax(-1, keepdim=True) if logits.numel() else logits.new_zeros(*logits.shape[:3], 1)
    largest = largest.clamp(min=UNATTENDED)
    weights = torch.exp2(logits - largest)
    total = weights.sum(-1, keepdim=True).clamp(min=1)  # At least one where a query attends to anything.
    out = torch.where(real, (weights @ v) / total, 0).transpose(1, 2).flatten(2)  # (B, L, H * D)
    stats = torch.where(real, torch.cat([largest, total], -1), 0).transpose(2, 3)
    return out.to(qkv.dtype).contiguous(), stats.contiguous()


def attention_backward(
    grad: Tensor, qkv: Tensor, counts: Tensor | None, attend: Tensor | None, out: Tensor, stats: Tensor
) -> Tensor:
    """Return the gradient of the projection (B, L, 3, H, D); `stats` are not needed here."""
    q, k, v, logits, real = _parts(qkv, counts, attend)
    weights = torch.where(real & ~(logits <= UNATTENDED), torch.softmax(logits / LOG2_E, -1), 0)
    flow, out = (t.to(q.dtype).view(qkv.shape[:2] + qkv.shape[3:]).transpose(1, 2) for t in (grad, out))  # (B, H, L, D)
    flow = torch.where(real, flow, 0)
    mean = (flow * out).sum(-1, keepdim=True)
    slopes = weights * (flow @ v.transpose(-1, -2) - mean) / math.sqrt(qkv.shape[-1])
    parts = (slopes @ k, slopes.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ flow)
    return torch.stack(parts).permute(1, 3, 0, 2, 4).to(qkv.dtype).contiguous()
