"""Members of patches: what stands around the matrix products of a mini-PointNet, each in one pass over the rows.

Legend: R = G * K rows, the K members of group 0 first, C channels, D outputs. Rows are float16, bfloat16, float32 or float64; numbers
are computed in float32 at least. Small operands may have any floating dtype. The building blocks of `models/layers/embed.py`, which
puts them together with gradients; none is differentiable by itself. Results do not depend on the number of threads.
"""

import torch
from torch import Tensor

from ..reference import patches as reference
from .checks import FLOATS
from .registration import register

LARGEST_GROUP = 255  # winners are stored as bytes


def group_max(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the largest of each k rows of (R, C): values (R / k, C) and winners, their positions 0..k-1, uint8.

    The first of equals wins; NaN wins over numbers.

    Raises:
        ValueError: x is not (R, C), its rows do not divide by k, or k is not 1 to 255.
    """
    _check_rows("group_max", x, k)
    return torch.ops.m2ae.group_max(x, k)


def join_rows(x: Tensor, group: Tensor, k: int) -> Tensor:
    """Add group (G, C) to each of its k rows of x (G * k, C), in place.

    Returns:
        (2, C) float64: the sums over the rows of the new x and of its square.

    Raises:
        ValueError: shapes do not match.
    """
    _check_rows("join_rows", x, k)
    _check_shape("join_rows", "group", group, (len(x) // k, x.shape[1]))
    return torch.ops.m2ae.join_rows(x, group, k)


def norm_relu(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return relu((x - mean) * scale + shift) of rows (R, C), all others (C,).

    Raises:
        ValueError: shapes do not match.
    """
    _check_rows("norm_relu", x, 1)
    _check_norm("norm_relu", x, mean=mean, scale=scale, shift=shift)
    return torch.ops.m2ae.norm_relu(x, mean, scale, shift)


def lift_rows(points: Tensor, weight: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return relu(points @ weight.T + shift) of points (R, 3) with weight (C, 3) and shift (C,), stored as `dtype`.

    Raises:
        ValueError: shapes do not match, or the dtype is not floating.
    """
    _check_rows("lift_rows", points, 1)
    _check_shape("lift_rows", "points", points, (len(points), 3))
    _check_shape("lift_rows", "weight", weight, (len(shift), 3))
    if dtype not in FLOATS:
        raise ValueError(f"lift_rows: dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    return torch.ops.m2ae.lift_rows(points, weight, shift, dtype)


def lift_rows_sums(grad: Tensor, out: Tensor, points: Tensor) -> Tensor:
    """Sum grad * (x, y, z, 1) over the rows where out > 0: all that the gradient of `lift_rows` needs, (4, C) float64.

    Raises:
        ValueError: grad and out are not both (R, C), or points not (R, 3).
    """
    _check_rows("lift_rows_sums", out, 1)
    _check_shape("lift_rows_sums", "grad", grad, tuple(out.shape))
    _check_shape("lift_rows_sums", "points", points, (len(out), 3))
    return torch.ops.m2ae.lift_rows_sums(grad, out, points)


def spread_winners(grad: Tensor, winners: Tensor, weight: Tensor, rows: Tensor, grad_rows: Tensor) -> Tensor:
    """Propagate grad (G, D) of `group_max(rows @ weight.T, k)` back through winners only.

    Args:
        winners: (G, D), from `group_max`.
        weight: (D, C); rows: (G * k, C).
        grad_rows: (G * k, C), receives the gradient of the rows on top of what it holds, in place.

    Returns:
        the gradient of the weight, (D, C), float32 or float64.

    Raises:
        ValueError: shapes do not match.
    """
    _check_peak("spread_winners", grad, winners, weight, rows)
    _check_shape("spread_winners", "grad_rows", grad_rows, tuple(rows.shape))
    return torch.ops.m2ae.spread_winners(grad, winners, weight, rows, grad_rows)


def peak_sums(
    grad: Tensor, winners: Tensor, weight: Tensor, x: Tensor, *, mean: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Begin the way back through `group_max(norm_relu(x, mean, scale, shift) @ weight.T, k)`.

    With g (R, C) the gradient before the ReLU, which is never stored:

    Returns:
        (2, C) float64, the sums over the rows of g and of g * (x - mean), and the gradient of the weight (D, C).

    Raises:
        ValueError: shapes do not match.
    """
    _check_peak("peak_sums", grad, winners, weight, x)
    _check_norm("peak_sums", x, mean=mean, scale=scale, shift=shift)
    return torch.ops.m2ae.peak_sums(grad, winners, weight, x, mean, scale, shift)


def peak_backward(
    grad: Tensor,
    winners: Tensor,
    weight: Tensor,
    x: Tensor,
    *,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    slope: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """Finish what `peak_sums` began: return g * scale + slope * (x - mean) + offset (R, C), and its sums over the groups (G, C).

    Raises:
        ValueError: shapes do not match.
    """
    _check_peak("peak_backward", grad, winners, weight, x)
    _check_norm("peak_backward", x, mean=mean, scale=scale, shift=shift, slope=slope, offset=offset)
    return torch.ops.m2ae.peak_backward(grad, winners, weight, x, mean, scale, shift, slope, offset)


def _check_rows(op: str, x: Tensor, k: int) -> None:
    if x.dim() != 2 or x.dtype not in FLOATS:
        raise ValueError(f"{op}: rows must be floating (R, C), got {x.dtype} {tuple(x.shape)}")
    if not 1 <= k <= LARGEST_GROUP or len(x) % k:
        raise ValueError(
            f"{op}: k={k} must be 1 to {LARGEST_GROUP} and divide the {len(x)} rows; change the group size"
        )


def _check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} must be {expected}, got {tuple(tensor.shape)}")


def _check_norm(op: str, x: Tensor, **operands: Tensor) -> None:
    for name, operand in operands.items():
        _check_shape(op, name, operand, (x.shape[1],))


def _check_peak(op: str, grad: Tensor, winners: Tensor, weight: Tensor, rows: Tensor) -> None:
    if grad.dim() != 2 or not len(grad):
        raise ValueError(f"{op}: grad must be (G, D) with G > 0, got {tuple(grad.shape)}")
    if winners.dtype != torch.uint8:
        raise ValueError(f"{op}: winners must be uint8 as from group_max, got {winners.dtype}")
    if len(rows) % len(grad):
        raise ValueError(f"{op}: {len(rows)} rows do not divide by {len(grad)} groups")
    _check_rows(op, rows, len(rows) // len(grad))
    _check_shape(op, "winners", winners, tuple(grad.shape))
    _check_shape(op, "weight", weight, (grad.shape[1], rows.shape[1]))


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake_group_max(x, k):
    shape = (x.shape[0] // k, x.shape[1])
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)


def _fake_join_rows(x, group, k):
    return x.new_empty((2, x.shape[1]), dtype=torch.float64)


def _fake_norm_relu(x, mean, scale, shift):
    return x.new_empty(x.shape)


def _fake_lift_rows(points, weight, shift, dtype):
    return points.new_empty((points.shape[0], weight.shape[0]), dtype=dtype)


def _fake_lift_rows_sums(grad, out, points):
    return out.new_empty((4, out.shape[1]), dtype=torch.float64)


def _fake_spread_winners(grad, winners, weight, rows, grad_rows):
    return weight.new_empty(weight.shape, dtype=_real(rows))


def _fake_peak_sums(grad, winners, weight, x, mean, scale, shift):
    return x.new_empty((2, x.shape[1]), dtype=torch.float64), weight.new_empty(weight.shape, dtype=_real(x))


def _fake_peak_backward(grad, winners, weight, x, mean, scale, shift, slope, offset):
    return x.new_empty(x.shape), x.new_empty((grad.shape[0], x.shape[1]), dtype=_real(x))


_PEAK = "Tensor grad, Tensor winners, Tensor weight, "
_NORM = "Tensor x, Tensor mean, Tensor scale, Tensor shift"
for _name, _schema, _fake in (
    ("group_max", "(Tensor x, SymInt k) -> (Tensor, Tensor)", _fake_group_max),
    ("join_rows", "(Tensor(a!) x, Tensor group, SymInt k) -> Tensor", _fake_join_rows),
    ("norm_relu", f"({_NORM}) -> Tensor", _fake_norm_relu),
    ("lift_rows", "(Tensor points, Tensor weight, Tensor shift, ScalarType dtype) -> Tensor", _fake_lift_rows),
    ("lift_rows_sums", "(Tensor grad, Tensor out, Tensor points) -> Tensor", _fake_lift_rows_sums),
    ("spread_winners", f"({_PEAK}Tensor rows, Tensor(a!) grad_rows) -> Tensor", _fake_spread_winners),
    ("peak_sums", f"({_PEAK}{_NORM}) -> (Tensor, Tensor)", _fake_peak_sums),
    ("peak_backward", f"({_PEAK}{_NORM}, Tensor slope, Tensor offset) -> (Tensor, Tensor)", _fake_peak_backward),
):
    register(_name, _schema, reference=getattr(reference, _name), fake=_fake)
