"""Rows of a matrix: sums for batch normalisation, and the way back through a norm with a ReLU. Shape legend: R rows, C channels."""

import torch
from torch import Tensor

from ..reference import rows as reference
from .checks import check_device, check_float
from .registration import register


def row_sums(x: Tensor, y: Tensor, shift: Tensor) -> Tensor:
    """Sum y and y * (x - shift) over the rows, in double precision whatever the inputs are.

    The result does not depend on the number of threads, and hardly on how rows are spread over processes.

    Args:
        x, y: (R, C) of one dtype; float16 and bfloat16 are read as they are.
        shift: (C,).

    Returns:
        (2, C) float64: the sums of y, and those of y * (x - shift). Not differentiable.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    _check("row_sums", x=x, y=y, shift=shift)
    return torch.ops.m2ae.row_sums(x, y, shift)


def norm_relu_sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Begin the way back through `norm_relu(x, mean, scale, shift)`, whose output has the gradient `grad`.

    Args:
        grad, x: (R, C) of one dtype.
        mean, scale, shift: (C,), of the way forward.

    Returns:
        (2, C) float64: with g the gradient before the ReLU, the sums over the rows of g and of g * (x - mean). Not differentiable.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    _check("norm_relu_sums", grad=grad, x=x, mean=mean, scale=scale, shift=shift)
    return torch.ops.m2ae.norm_relu_sums(grad, x, mean, scale, shift)


def norm_relu_backward(
    grad: Tensor, x: Tensor, *, mean: Tensor, scale: Tensor, shift: Tensor, slope: Tensor, offset: Tensor
) -> Tensor:
    """Finish what `norm_relu_sums` began: return g * scale + slope * (x - mean) + offset, (R, C).

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    operands = {"mean": mean, "scale": scale, "shift": shift, "slope": slope, "offset": offset}
    _check("norm_relu_backward", grad=grad, x=x, **operands)
    return torch.ops.m2ae.norm_relu_backward(grad, x, *operands.values())


def _check(op: str, **tensors: Tensor) -> None:
    """Check two matrices (R, C) of one dtype and the vectors (C,) that follow them."""
    first, second, *vectors = tensors
    a, b = tensors[first], tensors[second]
    for name, tensor in tensors.items():
        check_float(op, name, tensor)
        check_device(op, first, a, name, tensor)
    if a.dtype != b.dtype:
        raise ValueError(f"{op}: {first} is {a.dtype} but {second} is {b.dtype}; convert one of them")
    if a.dim() != 2 or a.shape != b.shape or any(tensors[name].shape != a.shape[1:] for name in vectors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
        raise ValueError(f"{op}: {first} and {second} must be (R, C) and {', '.join(vectors)} (C,), got {shapes}")


def _fake_sums(x, *_):
    return x.new_empty((2, x.shape[1]), dtype=torch.float64)


def _fake_backward(grad, x, *_):
    return x.new_empty(x.shape)


_NORM = "Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift"
for _name, _schema, _fake in (
    ("row_sums", "(Tensor x, Tensor y, Tensor shift) -> Tensor", _fake_sums),
    ("norm_relu_sums", f"({_NORM}) -> Tensor", _fake_sums),
    ("norm_relu_backward", f"({_NORM}, Tensor slope, Tensor offset) -> Tensor", _fake_backward),
):
    register(_name, _schema, reference=getattr(reference, _name), fake=_fake)
