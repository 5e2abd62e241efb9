"""Kernels of the way forward. Legend as in `device.py`; `A` columns of the hidden rows, `C` of the joined ones, `N` of a result."""

import triton
import triton.language as tl

from .device import (
    load_first,
    load_rows,
    load_weight,
    locate,
    lower,
    normalise,
    product,
    relu,
    store_moments,
    take_in,
)


@triton.jit(do_not_specialize=["rows", "tiles"])
def moments_kernel(points, partial, rows, tiles, BM: tl.constexpr):
    """Sum the products of (x, y, z, 1) with itself over the rows of `tiles` tiles, in float64: (programs, 4, 4)."""
    program = tl.program_id(0)
    col = tl.arange(0, 4)
    total = tl.zeros((4, 4), tl.float64)
    for step in range(tiles):
        start = (program * tiles + step).to(tl.int64) * BM
        row = tl.arange(0, BM)
        valid = start + row < rows
        at = points + start * 3 + (row[:, None] * 3 + col[None, :])
        value = tl.load(at, mask=valid[:, None] & (col < 3)[None, :], other=0.0).to(tl.float64)
        value = tl.where((col == 3)[None, :] & valid[:, None], 1.0, value)
        total += tl.sum(value[:, :, None] * value[:, None, :], 0)
    tl.store(partial + program * 16 + col[:, None] * 4 + col[None, :], total)


@triton.jit(do_not_specialize=["rows", "tiles"])
def column_kernel(x, partial, rows, tiles, A: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Gather the moments of columns of x (rows, A) over `tiles` tiles: (programs, 4, A)."""
    blocks: tl.constexpr = (A + BN - 1) // BN
    program = tl.program_id(0) // blocks
    col = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    count = 0.0
    pivot, sums, squares = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for step in range(tiles):
        start = (program * tiles + step).to(tl.int64) * BM
        row = tl.arange(0, BM)
        valid = start + row < rows
        value = load_rows(x, start, row, valid, col, A)
        count, pivot, sums, squares = take_in(step, count, pivot, sums, squares, value, valid)
    store_moments(partial, program, count, pivot, sums, squares, col, A)


@triton.jit(do_not_specialize=["groups"])
def peak_kernel(
    source, lift, norm, weight, best, winners, groups, K, A: tl.constexpr, N: tl.constexpr, K2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, POINTS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Normalise, ReLU, multiply, find the largest of each group and who it is: best, winners (G, N). Rounded before compared."""
    blocks: tl.constexpr = (N + BN - 1) // BN
    tile = tl.program_id(0) // blocks
    col = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    first, _, row, _, valid = locate(tile, groups, K, K2, BM)
    dtype = weight.dtype.element_ty
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, A, BK):
        mid = start + tl.arange(0, BK)
        hidden = relu(normalise(load_first(source, lift, first * K, row, valid, mid, A, POINTS), norm, mid, A))
        hidden = lower(hidden, dtype, EMULATED)
        total = product(hidden, tl.trans(load_weight(weight, col, N, mid, A)), total, EMULATED)
    total = tl.where(valid[:, None], lower(total, dtype, EMULATED).to(tl.float32), float("-inf"))
    members = tl.reshape(total, (BM // K2, K2, BN))
    largest, who = tl.max(members, axis=1, return_indices=True, return_indices_tie_break_left=True)
    broken = tl.max((members != members).to(tl.int32), axis=1)  # a comparison would lose NaN
    largest = tl.where(broken > 0, float("nan"), largest)
    own = tl.arange(0, BM // K2)
    at = own[:, None] * N + col[None, :]
    real = (first + own < groups)[:, None] & (col < N)[None, :]
    tl.store(best + first * N + at, largest.to(dtype), mask=real)
    tl.store(winners + first * N + at, who.to(tl.uint8), mask=real)


@triton.jit(do_not_specialize=["groups", "tiles"])
def join_kernel(
    source, lift, norm, weight, offsets, joined, partial, groups, tiles, K, A: tl.constexpr, C: tl.constexpr,
    K2: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, POINTS: tl.constexpr,
    STATS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Normalise, ReLU, multiply, add what is common to the group: joined (R, C), and the moments of its columns."""
    blocks: tl.constexpr = (C + BN - 1) // BN
    program = tl.program_id(0) // blocks
    col = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    dtype = joined.dtype.element_ty
    count = 0.0
    pivot, sums, squares = tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32), tl.zeros((BN,), tl.float32)
    for step in range(tiles):
        tile = program * tiles + step
        first, group, row, _, valid = locate(tile, groups, K, K2, BM)
        total = load_rows(offsets, first, group, valid, col, C)
        for start in range(0, A, BK):
            mid = start + tl.arange(0, BK)
            hidden = relu(normalise(load_first(source, lift, first * K, row, valid, mid, A, POINTS), norm, mid, A))
            factor = load_weight(weight, col, C, mid, A)
            total = product(lower(hidden, dtype, EMULATED), tl.trans(factor), total, EMULATED)
        rounded = lower(total, dtype, EMULATED)
        at = joined + first * K * C + (row[:, None] * C + col[None, :])
        tl.store(at, rounded, mask=valid[:, None] & (col < C)[None, :])
        if STATS:
            value = rounded.to(tl.float32)
            count, pivot, sums, squares = take_in(step, count, pivot, sums, squares, value, valid)
    if STATS:
        store_moments(partial, program, count, pivot, sums, squares, col, C)
