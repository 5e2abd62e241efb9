"""Which form of an op runs: the one place that asks about devices, instruction sets and the compiler."""

import torch
from torch import Tensor

from ..loader import backend

DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # of the kernels for rows and heads
VECTORS = ("compiled (avx2)", "compiled (avx512)")


def eager_cpu(x: Tensor) -> bool:
    """Return whether passes over rows are fused by hand: on the CPU, eager. A GPU and the compiler have better means."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def own_attention(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Return whether our attention serves tokens like these (of another dtype): on the CPU, eager, with AVX2 at least.

    Else PyTorch's is the faster one.
    """
    return eager_cpu(x) and (dtype or x.dtype) in DTYPES and backend() in VECTORS
