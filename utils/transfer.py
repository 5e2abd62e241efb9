"""Small tensors that are drawn on the CPU, on their way to the device of a step."""

import torch
from torch import Tensor


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
