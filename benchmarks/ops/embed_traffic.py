"""What the patch embedding moves through a GPU's memory in a training step, worked out from its passes; nothing is run.

Counted are tensors with a row for each member, in elements of a row: written and read once by every pass over them. What a group has once,
weights and sums are left out on both sides, and so is what several programs of a kernel read at the same time (the L2 cache serves it).
The plain side is `extensions.m2ae_ops.private.embedding.plain` as PyTorch runs it, an operation a pass, backward included.

Legend: P channels of a member; A, W, C and D of the hidden, pooled and joined rows and of the tokens.
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """Groups and members of a sample, and the widths of its mini-PointNet."""

    title: str
    groups: int
    k: int
    P: int
    A: int
    W: int
    C: int
    D: int


SHAPES = (
    Shape("Point-M2AE, finest scale", 512, 16, 3, 128, 256, 512, 96),
    Shape("Point-M2AE, middle scale", 256, 8, 96, 96, 96, 192, 192),
    Shape("Point-M2AE, coarsest scale", 64, 8, 192, 192, 192, 384, 384),
    Shape("Point-MAE", 64, 32, 3, 128, 256, 512, 384),
)


class Pass(NamedTuple):
    """Elements of a row that are read and written."""

    what: str
    read: float
    written: float


def _maximum_backward(width: int, byte: float) -> list[Pass]:
    """The gradient of `amax`: a mask of bytes, its sum, gradient times mask, by the sum."""
    return [
        Pass("maximum, mask", width, byte * width),
        Pass("maximum, count", byte * width, 0),
        Pass("maximum, spread", byte * width, width),
        Pass("maximum, divide", width, width),
    ]


def _norm_backward(width: int) -> list[Pass]:
    return [
        Pass("ReLU, back", 2 * width, width),
        Pass("norm, sums", 2 * width, 0),
        Pass("norm, back", 2 * width, width),
    ]


def plain_passes(shape: Shape, element: int) -> list[Pass]:
    """Return the passes of the plain layers; an element has `element` bytes."""
    _, _, _, P, A, W, C, D = shape
    of_points = [] if P != 3 else [Pass("points, cast", P * 4 / element, P)]
    forward = [
        *of_points,
        Pass("lift", P, A),
        Pass("norm, statistics", A, 0),
        Pass("norm", A, A),
        Pass("ReLU", A, A),
        Pass("widen", A, W),
        Pass("maximum", W, 0),
        Pass("join", A, C),
        Pass("add the group's part", C, C),
        Pass("norm, statistics", C, 0),
        Pass("norm", C, C),
        Pass("ReLU", C, C),
        Pass("last", C, D),
        Pass("maximum", D, 0),
    ]
    backward = [
        *_maximum_backward(D, 1 / element),
        Pass("last, to rows", D, C),
        Pass("last, to weight", C + D, 0),
        *_norm_backward(C),
        Pass("group's part, sum", C, 0),
        Pass("join, to rows", C, A),
        Pass("join, to weight", C + A, 0),
        *_maximum_backward(W, 1 / element),
        Pass("widen, to rows", W, A),
        Pass("widen, to weight", W + A, 0),
        Pass("both ways together", 2 * A, A),
        *_norm_backward(A),
        Pass("lift, to weight", A + P, 0),
        *([] if P == 3 else [Pass("lift, to rows", A, P)]),
    ]
    return forward + backward


def fused_passes(shape: Shape, element: int) -> list[Pass]:
    """Return the passes of `extensions/m2ae_ops/fused`; hidden rows of points are worked out wherever they are needed."""
    _, _, _, P, A, _, C, _ = shape
    of_points = P == 3
    source = P * 4 / element if of_points else A
    first = [Pass("moments", source, 0)] if of_points else [Pass("lift", P, A), Pass("statistics", A, 0)]
    last = [] if of_points else [
        Pass("norm, back", 2 * A, A),
        Pass("lift, to rows", A, P),
        Pass("lift, to weight", A + P, 0),
    ]  # fmt: skip
    return [
        *first,
        Pass("pooled", source, 0),
        Pass("joined, with statistics", source, C),
        Pass("tokens", C, 0),
        Pass("last, to weight, and the sums of the norm", C, 0),
        Pass("join, to weight, and the group's part", C + source, 0),
        Pass("widen, to weight", source, 0),
        Pass("to before the first ReLU", C + source, 0 if of_points else A),
        *last,
    ]


def megabytes(shape: Shape, passes: list[Pass], element: int) -> float:
    """Return what the passes move for a sample, in 10^6 bytes."""
    return shape.groups * shape.k * element * sum(p.read + p.written for p in passes) / 1e6


def table(element: int = 2) -> str:
    """Return a Markdown table over the shapes."""
    lines = ["| | plain, MB a sample | fused, MB a sample | ratio |", "|---|---|---|---|"]
    for shape in SHAPES:
        plain, fused = plain_passes(shape, element), fused_passes(shape, element)
        before, after = megabytes(shape, plain, element), megabytes(shape, fused, element)
        lines.append(f"| {shape.title} | {before:.0f} | {after:.1f} | {before / after:.1f}x |")
    return "\n".join(lines)
