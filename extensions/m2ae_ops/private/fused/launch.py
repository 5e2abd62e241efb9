"""The eight steps of the fused mini-PointNet as kernels; `../../reference/embedding.py` says what each one computes.

Sums over rows are float32 inside a program, which takes its tiles in order, and float64 over programs, in their order: no atomics, and
the same bits at every run. On CPU tensors the kernels run under TRITON_INTERPRET=1, for the tests.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from . import backward, forward
from .limits import LARGEST_GROUP

# How many programs share the rows of a sum, about: several for each multiprocessor.
PROGRAMS = contextvars.ContextVar("PROGRAMS", default=1024)
WARPS = 8
# Slots of a tile and columns of blocks, for operands of 2 and of 4 bytes. Products of float32 take their operands through registers,
# so that larger blocks spill; and with 64 rows of a result, Triton 3.6 would hand them to Blackwell's tensor cores as TF32, whatever
# precision is asked for (`tests/extensions/test_mini_pointnet_compile.py`).
SIZES = {
    "peak": {2: {"BM": 128, "BN": 128, "BK": 64}, 4: {"BM": 32, "BN": 64, "BK": 32}},
    "join": {2: {"BM": 64, "BN": 128, "BK": 64}, 4: {"BM": 32, "BN": 64, "BK": 32}},
    "winners": {2: {"BM": 64, "BA": 64, "BD": 128}, 4: {"BM": 32, "BA": 64, "BD": 32}},
    "join_backward": {2: {"BM": 64, "BC": 64, "BA": 128, "BD": 32}, 4: {"BM": 32, "BC": 32, "BA": 64, "BD": 16}},
    "members_backward": {2: {"BM": 64, "BC": 64, "BA": 128, "BD": 32}, 4: {"BM": 32, "BC": 32, "BA": 64, "BD": 16}},
}


@contextlib.contextmanager
def programs(count: int) -> Iterator[None]:
    """Let another number of programs share the rows of a sum, so that few rows make programs of several tiles."""
    token = PROGRAMS.set(count)
    try:
        yield
    finally:
        PROGRAMS.reset(token)


def tiles_of_program(tiles: int, blocks: int) -> int:
    """Return how many tiles a program sums over."""
    return triton.cdiv(tiles, max(PROGRAMS.get() // blocks, 1))


def _number(value: int, rows: Tensor) -> int | triton.language.constexpr:
    """Return a number for a kernel to count to, which the interpreter does not take as an argument but as a constant."""
    return value if rows.is_cuda else triton.language.constexpr(value)


class Plan:
    """How a kernel cuts its work: columns into blocks, rows into tiles of whole groups, tiles into programs.

    Args:
        kernel: a key of SIZES; a block is not larger than the columns need.
        rows: (R, ...), of groups of k.
        dtype: of the operands of products.
        across: columns that programs divide among them, by the name of their block.
        inside: columns that every program goes through.
        summed: whether a program takes several tiles and adds them up.
    """

    def __init__(self, kernel: str, rows: Tensor, k: int, dtype: torch.dtype, *, across, inside=None, summed=True):
        if not 1 <= k <= LARGEST_GROUP:
            raise ValueError(f"mini_pointnet: groups of k={k}; a tile holds groups of 1 to {LARGEST_GROUP} members")
        sizes, each = SIZES[kernel][dtype.itemsize], triton.next_power_of_2(k)
        fitted = {
            name: min(sizes[name], max(triton.next_power_of_2(width), 16))
            for name, width in (across | (inside or {})).items()
        }
        slots = max(sizes["BM"], each)
        self.groups = len(rows) // k
        tiles = triton.cdiv(self.groups, slots // each)
        blocks = math.prod(triton.cdiv(width, fitted[name]) for name, width in across.items())
        per = tiles_of_program(tiles, blocks) if summed else 1
        self.programs = triton.cdiv(tiles, per)
        self.grid = (self.programs * blocks,)
        self.options = {"groups": self.groups, "K": k, "K2": each, "BM": slots, **fitted, "num_warps": WARPS}
        self.options |= {"EMULATED": not rows.is_cuda} | ({"tiles": _number(per, rows)} if summed else {})


def _origin(source: Tensor, lift: Tensor | None) -> dict:
    return {"source": source, "lift": source if lift is None else lift, "POINTS": lift is not None}


def _add_up(partial: Tensor) -> Tensor:
    return partial.sum(0, dtype=torch.float64).to(partial.dtype)


def _combine(partial: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (A,), float64, of what programs have gathered: (programs, 4, A), as `store_moments` says."""
    count, pivot, sums, squares = partial.double().unbind(1)
    rows, mean = count.sum(0), pivot + sums / count
    overall = (count * mean).sum(0) / rows
    within = (squares - sums.square() / count).clamp_(min=0)
    return overall, (within + count * (mean - overall).square()).sum(0) / rows


def point_moments(points: Tensor) -> Tensor:
    """As in the reference."""
    size = 256
    tiles = triton.cdiv(len(points), size)
    per = tiles_of_program(tiles, 1)
    partial = points.new_empty((triton.cdiv(tiles, per), 4, 4), dtype=torch.float64)
    forward.moments_kernel[(len(partial),)](
        points, partial, len(points), tiles=_number(per, points), BM=size, num_warps=4
    )
    return partial.sum(0)


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """As in the reference."""
    (rows, width), size = x.shape, 64
    blocks, tiles = triton.cdiv(width, size), triton.cdiv(rows, size)
    per = tiles_of_program(tiles, blocks)
    programs = triton.cdiv(tiles, per)
    partial = x.new_empty((programs, 4, width), dtype=torch.float32)
    forward.column_kernel[(programs * blocks,)](
        x, partial, rows, A=width, tiles=_number(per, x), BM=size, BN=size, num_warps=4
    )
    return _combine(partial)


def peak(source: Tensor, lift: Tensor | None, norm: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As in the reference."""
    width, A = weight.shape
    plan = Plan("peak", source, k, weight.dtype, across={"BN": width}, inside={"BK": A}, summed=False)
    best = weight.new_empty((plan.groups, width))
    winners = torch.empty_like(best, dtype=torch.uint8)
    forward.peak_kernel[plan.grid](
        norm=norm, weight=weight, best=best, winners=winners, A=A, N=width, **_origin(source, lift), **plan.options
    )
    return best, winners


def join(
    source: Tensor, lift: Tensor | None, norm: Tensor, weight: Tensor, offsets: Tensor, k: int, moments: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As in the reference."""
    C, A = weight.shape
    plan = Plan("join", source, k, weight.dtype, across={"BN": C}, inside={"BK": A})
    joined = weight.new_empty((len(source), C))
    partial = norm.new_empty((plan.programs, 4, C)) if moments else norm
    forward.join_kernel[plan.grid](
        norm=norm, weight=weight, offsets=offsets, joined=joined, partial=partial, A=A, C=C, STATS=moments,
        **_origin(source, lift), **plan.options,
    )  # fmt: skip
    return (joined, *(_combine(partial) if moments else (None, None)))


def winner_sums(
    grad: Tensor, winners: Tensor, source: Tensor, lift: Tensor | None, norm: Tensor, k: int, split: bool
) -> Tensor:
    """As in the reference."""
    D, A = grad.shape[1], norm.shape[1]
    plan = Plan("winners", source, k, grad.dtype, across={"BA": A, "BD": D})
    partial = norm.new_empty((plan.programs, 2 if split else 1, D, A))
    if split and source.is_cuda and torch.cuda.get_device_capability(source.device)[0] >= 10:
        plan.options["num_stages"] = 1  # Triton 3.6 fails to pipeline two products of one operand for tensor memory
    backward.winners_kernel[plan.grid](
        grad=grad, winners=winners, norm=norm, partial=partial, A=A, D=D, SPLIT=split, **_origin(source, lift),
        **plan.options,
    )  # fmt: skip
    return _add_up(partial)


def join_backward(
    grad: Tensor,
    winners: Tensor,
    last: Tensor,
    joined: Tensor,
    norm: Tensor,
    source: Tensor,
    lift: Tensor | None,
    first_norm: Tensor,
    k: int,
) -> tuple[Tensor, Tensor]:
    """As in the reference."""
    (D, C), A = last.shape, first_norm.shape[1]
    plan = Plan("join_backward", source, k, last.dtype, across={"BC": C, "BA": A}, inside={"BD": D})
    partial, to_groups = norm.new_empty((plan.programs, C, A)), norm.new_empty((plan.groups, C))
    backward.join_backward_kernel[plan.grid](
        grad=grad, winners=winners, last=last, joined=joined, norm=norm, first_norm=first_norm, partial=partial,
        to_groups=to_groups, A=A, C=C, D=D, **_origin(source, lift), **plan.options,
    )  # fmt: skip
    return _add_up(partial), to_groups


def members_backward(
    grad: Tensor,
    winners: Tensor,
    last: Tensor,
    joined: Tensor,
    norm: Tensor,
    from_hidden: Tensor,
    pooled_grad: Tensor,
    pooled_winners: Tensor,
    widen: Tensor,
    source: Tensor,
    lift: Tensor | None,
    first_norm: Tensor,
    k: int,
) -> tuple[Tensor | None, Tensor]:
    """As in the reference."""
    (D, C), (W, A), points = last.shape, widen.shape, lift is not None
    plan = Plan("members_backward", source, k, last.dtype, across={"BA": A}, inside={"BC": C, "BD": max(D, W)})
    partial = norm.new_empty((plan.programs, 4 if points else 2, A))
    to_rows = None if points else last.new_empty((len(source), A))
    backward.members_backward_kernel[plan.grid](
        grad=grad, winners=winners, last=last, joined=joined, norm=norm, from_hidden=from_hidden,
        pooled_grad=pooled_grad, pooled_winners=pooled_winners, widen=widen, first_norm=first_norm,
        to_rows=partial if points else to_rows, partial=partial, A=A, C=C, D=D, W=W, **_origin(source, lift),
        **plan.options,
    )  # fmt: skip
    return to_rows, _add_up(partial)


def norm_backward(flow: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """As in the reference."""
    (rows, width), size = x.shape, 64
    change = torch.empty_like(flow)
    backward.norm_backward_kernel[(triton.cdiv(rows, size) * triton.cdiv(width, size),)](
        flow, x, norm, change, rows, A=width, BM=size, BN=size, EMULATED=not x.is_cuda, num_warps=4
    )
    return change
