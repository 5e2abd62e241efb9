"""What the public wrappers check before an op runs. Messages name the op, the offending value and the remedy."""

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_points(op: str, **clouds: torch.Tensor) -> None:
    """Check that every cloud is a floating (B, N, 3) tensor with points in it, all alike in batch, dtype and device."""
    for name, points in clouds.items():
        _check_float(op, name, points)
        if points.dim() != 3 or points.shape[-1] != 3:
            raise ValueError(f"{op}: {name} must have shape (B, N, 3), got {tuple(points.shape)}")
        if points.shape[1] == 0:
            raise ValueError(f"{op}: {name} has zero points, shape {tuple(points.shape)}; leave out empty clouds")
    check_alike(op, **clouds)


def check_values(op: str, values: torch.Tensor) -> None:
    """Check that `values` is (B, N, C) with at least one row."""
    if values.dim() != 3:
        raise ValueError(f"{op}: values must have shape (B, N, C), got {tuple(values.shape)}")
    if values.shape[1] == 0:
        raise ValueError(f"{op}: values has zero rows, shape {tuple(values.shape)}; there is nothing to index")


def check_alike(op: str, **tensors: torch.Tensor) -> None:
    """Check that all tensors share batch size, dtype and device."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[0] != first.shape[0]:
            raise ValueError(f"{op}: {first_name} has batch size {first.shape[0]} but {name} has {tensor.shape[0]}")
        if tensor.dtype != first.dtype:
            raise ValueError(f"{op}: {first_name} is {first.dtype} but {name} is {tensor.dtype}; convert one of them")
        check_device(op, first_name, first, name, tensor)


def check_index(op: str, idx: torch.Tensor, name: str, values: torch.Tensor) -> None:
    """Check that `idx` is int64 and matches `values` in batch size and device."""
    if idx.dtype != torch.int64:
        raise ValueError(f"{op}: idx must be int64, got {idx.dtype}; call idx.long()")
    if idx.dim() < 1 or idx.shape[0] != values.shape[0]:
        raise ValueError(f"{op}: {name} has batch size {values.shape[0]} but idx has shape {tuple(idx.shape)}")
    check_device(op, name, values, "idx", idx)


def check_device(op: str, first_name: str, first: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    """Check that both tensors are on one device."""
    if tensor.device != first.device:
        raise ValueError(f"{op}: {first_name} is on {first.device} but {name} is on {tensor.device}; move one of them")


def _check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
