"""Self-attention with narrow heads. Shape legend: B batch, L tokens, H heads, D channels of a head.

For heads of 16 to 64 channels on the CPU, straight from the joint projection and back into its gradient. Elsewhere this is a reference
in plain PyTorch; GPUs have `torch.nn.functional.scaled_dot_product_attention`.
"""

import torch
from torch import Tensor

from .checks import check_device, check_float
from .reference import attention as reference
from .registration import register


def attention(qkv: Tensor, counts: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v for every head, in float32 at least.

    Args:
        qkv: (B, L, 3, H, D), queries, keys and values.
        counts: (B,) int64, how many leading tokens of each sample are real; default: all. The rest is padding: never attended to,
            with output and gradient 0, whatever it holds. Values outside 0..L mean the nearest one inside.
        attend: (B, L, L) bool, True = this query may attend to this key; default: all do. A query that attends to nothing gets 0. The
            fewer the keys of neighbouring queries are together, the quicker: tokens that are near each other should stand together.

    Returns:
        (B, L, H * D), contiguous, in the dtype of qkv. Differentiable in qkv, any order.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    check_float("attention", "qkv", qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3 or not qkv.shape[4]:
        raise ValueError(f"attention: qkv must have shape (B, L, 3, H, D) with D > 0, got {tuple(qkv.shape)}")
    if counts is not None:
        if counts.dtype != torch.int64 or counts.shape != qkv.shape[:1]:
            raise ValueError(
                f"attention: counts must be int64 ({qkv.shape[0]},), got {counts.dtype} {tuple(counts.shape)}"
            )
        check_device("attention", "qkv", qkv, "counts", counts)
    if attend is not None:
        B, L = qkv.shape[:2]
        if attend.dtype != torch.bool or attend.shape != (B, L, L):
            raise ValueError(
                f"attention: attend must be bool ({B}, {L}, {L}), got {attend.dtype} {tuple(attend.shape)}"
            )
        check_device("attention", "qkv", qkv, "attend", attend)
    return torch.ops.m2ae.attention(qkv, counts, attend)[0]


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
