"""What the public wrappers check before an op runs. Messages name the op, the offending value and the remedy."""

import math
import numbers

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_POINTS = 2**31 - 1
"""Points of a cloud at most, because kernels count them in 32 bits."""
MAX_ELEMENTS = 2**60 - 1
"""Values of a result at most, so that its size in bytes fits into 64 bits."""


def check_points(op: str, **clouds: torch.Tensor) -> None:
    """Check that every cloud is a floating (B, N, 3) tensor with points in it, all alike in batch, dtype and device."""
    for name, points in clouds.items():
        check_float(op, name, points)
        if points.dim() != 3 or points.shape[-1] != 3:
            raise ValueError(f"{op}: {name} must have shape (B, N, 3), got {tuple(points.shape)}")
        if points.shape[1] == 0:
            raise ValueError(f"{op}: {name} has zero points, shape {tuple(points.shape)}; leave out empty clouds")
        if points.shape[1] > MAX_POINTS:
            raise ValueError(
                f"{op}: {name} has {points.shape[1]} points, more than the limit {MAX_POINTS}; split the cloud"
            )
    check_alike(op, **clouds)


def check_tensor(op: str, name: str, tensor: torch.Tensor) -> None:
    """Check that `tensor` is a dense tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}; convert it by torch.as_tensor")
    if not torch.compiler.is_compiling() and tensor.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor, got layout {tensor.layout}; call .to_dense()")


def check_count(op: str, name: str, value: int) -> None:
    """Check that `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise ValueError(f"{op}: {name}={value!r} must be an integer, got {type(value).__name__}; convert it by int()")
    if value < 1:
        raise ValueError(f"{op}: {name}={value} must be at least 1")


def check_radius(op: str, radius: float) -> None:
    """Check that `radius` is a positive, finite number."""
    if isinstance(radius, bool) or not isinstance(radius, (numbers.Real, torch.SymInt, torch.SymFloat)):
        raise ValueError(
            f"{op}: radius={radius!r} must be a number, got {type(radius).__name__}; convert it by float()"
        )
    if not (radius > 0 and math.isfinite(radius)):
        raise ValueError(f"{op}: radius={radius} must be positive and finite")


def check_size(op: str, *sizes: int) -> None:
    """Check that a result of these sizes can be addressed.

    A traced graph is not checked: its sizes may be unknown, and the allocation fails by itself.
    """
    if not torch.compiler.is_compiling() and math.prod(sizes) > MAX_ELEMENTS:
        shape = " x ".join(map(str, sizes))
        raise ValueError(f"{op}: a result of {shape} values exceeds the limit {MAX_ELEMENTS}; work on smaller batches")


def check_values(op: str, values: torch.Tensor) -> None:
    """Check that `values` is (B, N, C) with at least one row."""
    check_tensor(op, "values", values)
    if values.dim() != 3:
        raise ValueError(f"{op}: values must have shape (B, N, C), got {tuple(values.shape)}")
    if values.shape[1] == 0:
        raise ValueError(f"{op}: values has zero rows, shape {tuple(values.shape)}; there is nothing to index")


def check_alike(op: str, **tensors: torch.Tensor) -> None:
    """Check that all tensors are dense and share batch size, dtype and device."""
    for name, tensor in tensors.items():
        check_tensor(op, name, tensor)
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[0] != first.shape[0]:
            raise ValueError(f"{op}: {first_name} has batch size {first.shape[0]} but {name} has {tensor.shape[0]}")
        if tensor.dtype != first.dtype:
            raise ValueError(f"{op}: {first_name} is {first.dtype} but {name} is {tensor.dtype}; convert one of them")
        check_device(op, first_name, first, name, tensor)


def check_index(op: str, idx: torch.Tensor, name: str, values: torch.Tensor) -> None:
    """Check that `idx` is int64 and matches `values` in batch size and device."""
    check_tensor(op, "idx", idx)
    if idx.dtype != torch.int64:
        raise ValueError(f"{op}: idx must be int64, got {idx.dtype}; call idx.long()")
    if idx.dim() < 1 or idx.shape[0] != values.shape[0]:
        raise ValueError(f"{op}: {name} has batch size {values.shape[0]} but idx has shape {tuple(idx.shape)}")
    check_device(op, name, values, "idx", idx)


def check_device(op: str, first_name: str, first: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    """Check that both tensors are on one device."""
    if tensor.device != first.device:
        raise ValueError(f"{op}: {first_name} is on {first.device} but {name} is on {tensor.device}; move one of them")


def check_float(op: str, name: str, tensor: torch.Tensor) -> None:
    """Check that `tensor` is a dense tensor of one of the floating dtypes."""
    check_tensor(op, name, tensor)
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; call .float()"
        )
