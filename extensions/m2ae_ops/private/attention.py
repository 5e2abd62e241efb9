"""The attention kernel for narrow heads as an op, and PyTorch's attention on the same operands.

Legend: B batch, L tokens, H heads, D channels of a head; counts (B,) int64, real tokens of each sample, which stand first.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import attention as reference
from .registration import register

# A forbidden pair gets this added to its logit. Finite on purpose: a row in which everything is forbidden stays finite too.
FORBIDDEN = -100000.0


def by_kernel(qkv: Tensor, counts: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v of qkv (B, L, 3, H, D), in float32 at least: (B, L, H * D), contiguous.

    Padding is never attended to, with output and gradient 0, whatever it holds; a query that attends to nothing gets 0. Counts outside
    0..L mean the nearest one inside. The fewer the keys of neighbouring queries are together, the quicker. Differentiable in
    qkv, any order. For heads of 16 to 64 channels on the CPU, straight from the joint projection and back into its
    gradient; elsewhere this is the reference.
    """
    return torch.ops.m2ae.attention(qkv, counts, attend)[0]


def by_pytorch(qkv: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
    """Compute the same by `scaled_dot_product_attention`; valid (B, L), attend (B, L, L), both bool.

    bfloat16 on the CPU is computed in float32, which is more exact, and for heads this narrow faster.
    """
    B, L, _, H, D = qkv.shape
    wide = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16
    q, k, v = (qkv.float() if wide else qkv).permute(2, 0, 3, 1, 4)
    with torch.autocast("cpu", enabled=False) if wide else contextlib.nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=_bias(valid, attend, q.dtype))
    return out.transpose(1, 2).reshape(B, L, H * D).to(qkv.dtype)


def _bias(valid: Tensor | None, attend: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what forbids pairs when it is added to their logits, (B, 1, 1 or L, L), or None."""
    if valid is None and attend is None:
        return None
    allowed = attend if valid is None else valid.unsqueeze(1)
    if valid is not None and attend is not None:
        allowed = allowed & attend
    return torch.where(allowed, 0.0, FORBIDDEN).to(dtype).unsqueeze(1)


def _fake(qkv, counts, attend):
    B, L, _, H, D = qkv.shape
    real = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return qkv.new_empty((B, L, H * D)), qkv.new_empty((B, H, 2, L), dtype=real)


def _fake_backward(grad, qkv, counts, attend, out, stats):
    return qkv.new_empty(qkv.shape)


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, grad, _):
    if grad is None:
        return None, None, None
    return torch.ops.m2ae.attention_backward(grad, *ctx.saved_tensors), None, None


def _setup_second(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])


def _second(ctx, flow):
    """Differentiate the gradient once more, through the reference. `out` and `stats` are functions of qkv, not inputs of their own."""
    grad, qkv, counts, attend = ctx.saved_tensors
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        grad, qkv = (t if t.requires_grad else t.detach().requires_grad_() for t in (grad, qkv))
        out, _ = reference.attention(qkv, counts, attend)
        (first,) = torch.autograd.grad(out, qkv, grad, create_graph=True)
        to_grad, to_qkv = torch.autograd.grad(first, (grad, qkv), flow, create_graph=again)
    return to_grad, to_qkv, None, None, None, None


register(
    "attention",
    "(Tensor qkv, Tensor? counts, Tensor? attend) -> (Tensor, Tensor)",
    reference=reference.attention,
    fake=_fake,
    backward=_backward,
    setup_context=_setup,
)
register(
    "attention_backward",
    "(Tensor grad, Tensor qkv, Tensor? counts, Tensor? attend, Tensor out, Tensor stats) -> Tensor",
    reference=reference.attention_backward,
    fake=_fake_backward,
    backward=_second,
    setup_context=_setup_second,
)
