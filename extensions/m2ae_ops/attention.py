"""Self-attention. Shape legend: B batch, L tokens, H heads, D channels of a head."""

import torch
from torch import Tensor

from .private.attention import by_kernel, by_pytorch
from .private.checks import check_device, check_float
from .private.choice import own_attention


def attention(qkv: Tensor, valid: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v for every head.

    On the CPU by a kernel of ours in float32 at least, elsewhere and under the compiler by PyTorch's attention.

    Args:
        qkv: (B, L, 3, H, D), queries, keys and values.
        valid: (B, L) bool, True = real token, real ones first in each sample; default: all. The rest is padding that nothing
            attends to. It must be finite, and its output means nothing.
        attend: (B, L, L) bool, True = this query may attend to this key; default: all do. The output of a query that may attend
            to nothing is finite but means nothing. See `near_first` for the order of tokens that makes this quick.

    Returns:
        (B, L, H * D) in the dtype of qkv, differentiable in qkv, any order.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    check_float("attention", "qkv", qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3 or not qkv.shape[4]:
        raise ValueError(f"attention: qkv must have shape (B, L, 3, H, D) with D > 0, got {tuple(qkv.shape)}")
    B, L = qkv.shape[:2]
    for name, mask, shape in (("valid", valid, (B, L)), ("attend", attend, (B, L, L))):
        if mask is None:
            continue
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(f"attention: {name} must be bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
        check_device("attention", "qkv", qkv, name, mask)
    if own_attention(qkv):
        return by_kernel(qkv, None if valid is None else valid.sum(1), attend)
    return by_pytorch(qkv, valid, attend)
