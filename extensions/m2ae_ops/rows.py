"""Sums over the rows of a matrix, for batch normalisation. Shape legend: R rows, C channels."""

import torch

from .checks import check_device, check_float
from .reference import rows as reference_rows
from .registration import register


def row_sums(x: torch.Tensor, y: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
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
    for name, tensor in {"x": x, "y": y, "shift": shift}.items():
        check_float("row_sums", name, tensor)
        check_device("row_sums", "x", x, name, tensor)
    if x.dtype != y.dtype:
        raise ValueError(f"row_sums: x is {x.dtype} but y is {y.dtype}; convert one of them")
    if x.dim() != 2 or x.shape != y.shape or shift.shape != x.shape[1:]:
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)}, {tuple(shift.shape)}"
        raise ValueError(f"row_sums: x and y must be (R, C) and shift (C,), got {shapes}")
    return torch.ops.m2ae.row_sums(x, y, shift)


def _fake(x, y, shift):
    return x.new_empty((2, x.shape[1]), dtype=torch.float64)


register("row_sums", "(Tensor x, Tensor y, Tensor shift) -> Tensor", reference=reference_rows.row_sums, fake=_fake)
