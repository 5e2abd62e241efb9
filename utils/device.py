"""Where a run computes, in which precision; how tensors get there; and memory."""

import contextlib
import ctypes
import os
import sys

import torch
from torch import Tensor

from utils.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """Resolve `--device`: by default the first CUDA device of this process, or the CPU.

    Raises:
        UserError: the device is unknown, or CUDA is asked for and not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: is no device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= count:
            raise UserError(
                f"--device {name}: {count} CUDA devices are visible; use --device cpu or make the device visible"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise UserError(f"--device {name}: is not supported; use cpu or cuda")
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" as it is; "auto" is fp16 on CUDA and fp32 elsewhere."""
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return precision


def check_precision(precision: str, device: torch.device) -> None:
    """Raise where a device cannot compute in a precision.

    Raises:
        UserError: bf16 on a CUDA device without it; it would be emulated, slower than fp32.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--precision bf16: {device} ({name}) has none; use --precision fp16 or fp32")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the autocast context of a precision; fp32 is none."""
    dtype = AUTOCAST_DTYPES[precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MB: of a CUDA device, else the resident set (0 on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


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
