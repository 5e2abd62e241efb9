"""Between host and device: small tensors on their way, and how the C library treats freed memory."""

import ctypes
import sys

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next allocation instead of returning them to the system.

    A training step frees and allocates the same large blocks over and over; giving them back costs a page fault per 4 KiB on the next
    step, up to half of the step's time on the CPU. Nothing but the resident memory between steps changes. No effect outside Linux.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def send(values: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to a device, without the host waiting for it; what is there already is returned as it is.

    A copy from ordinary memory of the host makes it wait for everything that the device still has to do. Page-locked memory does not, and
    PyTorch keeps such a block from being used again before its copy has happened.

    Args:
        dtype: to convert to, on the host.
    """
    device = torch.device(device)
    values = values if dtype is None else values.to(dtype)
    if values.device.type != "cpu" or device.type == "cpu":
        return values.to(device)
    return _lock(values).to(device, non_blocking=True)


def _lock(values: Tensor) -> Tensor:
    return values.pin_memory()
