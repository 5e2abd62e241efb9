"""What the kernels can serve, for those who do not import Triton."""

import importlib.util

import torch

LARGEST_GROUP = 128  # a tile holds whole groups
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def has_triton() -> bool:
    """Return whether the kernels can be compiled, without importing Triton."""
    return importlib.util.find_spec("triton") is not None
