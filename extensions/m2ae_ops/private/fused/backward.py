"""Kernels of the way back. Legend as in `device.py`; `A` columns of the hidden rows, `C` of the joined ones, `D` of a maximum."""

import triton
import triton.language as tl

from .device import (
    joined_gradient,
    load_axis,
    load_first,
    load_rows,
    load_weight,
    locate,
    lower,
    normalise,
    of_norm,
    product,
    relu,
    spread,
)


@triton.jit(do_not_specialize=["groups", "tiles"])
def winners_kernel(
    grad, winners, source, lift, norm, partial, groups, tiles, K, A: tl.constexpr, D: tl.constexpr,
    K2: tl.constexpr, BM: tl.constexpr, BA: tl.constexpr, BD: tl.constexpr, POINTS: tl.constexpr, SPLIT: tl.constexpr,
    EMULATED: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of a maximum times the row that won it, over `tiles` tiles: (programs, 1, D, A), of relu(norm(x)).

    SPLIT: (programs, 2, D, A), of x - mean and of 1, both where the ReLU lets through.
    """
    across: tl.constexpr = (A + BA - 1) // BA
    down: tl.constexpr = (D + BD - 1) // BD
    block = tl.program_id(0) % (across * down)
    program = tl.program_id(0) // (across * down)
    col = (block % across) * BA + tl.arange(0, BA)
    out = (block // across) * BD + tl.arange(0, BD)
    dtype = grad.dtype.element_ty
    total = tl.zeros((BD, BA), tl.float32)
    passed = tl.zeros((BD, BA), tl.float32)
    for step in range(tiles):
        tile = program * tiles + step
        first, group, row, member, valid = locate(tile, groups, K, K2, BM)
        sent = tl.trans(spread(grad, winners, first, group, member, valid, out, D))
        x = load_first(source, lift, first * K, row, valid, col, A, POINTS)
        normed = normalise(x, norm, col, A)
        if SPLIT:
            offset = tl.where(normed > 0, x - of_norm(norm, 0, col, A), 0.0)
            total = product(sent, lower(offset, dtype, EMULATED), total, EMULATED)
            passed = product(sent, tl.where(normed > 0, 1.0, 0.0).to(dtype), passed, EMULATED)
        else:
            total = product(sent, lower(relu(normed), dtype, EMULATED), total, EMULATED)
    at = partial + program.to(tl.int64) * D * A * (2 if SPLIT else 1) + (out[:, None] * A + col[None, :])
    real = (out < D)[:, None] & (col < A)[None, :]
    tl.store(at, total, mask=real)
    if SPLIT:
        tl.store(at + D * A, passed, mask=real)


@triton.jit(do_not_specialize=["groups", "tiles"])
def join_backward_kernel(
    grad, winners, last, joined, norm, source, lift, first_norm, partial, to_groups, groups, tiles, K, A: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, K2: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    BA: tl.constexpr, BD: tl.constexpr, POINTS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Gradients of the weight of the joined rows, over `tiles` tiles (programs, C, A), and of what is common to a group (G, C)."""
    across: tl.constexpr = (A + BA - 1) // BA
    down: tl.constexpr = (C + BC - 1) // BC
    block = tl.program_id(0) % (across * down)
    program = tl.program_id(0) // (across * down)
    mid = (block % across) * BA + tl.arange(0, BA)
    col = (block // across) * BC + tl.arange(0, BC)
    dtype = last.dtype.element_ty
    total = tl.zeros((BC, BA), tl.float32)
    for step in range(tiles):
        tile = program * tiles + step
        first, group, row, member, valid = locate(tile, groups, K, K2, BM)
        x = load_rows(joined, first * K, row, valid, col, C)
        change = joined_gradient(
            x, grad, winners, last, norm, first, group, member, valid, col, C, D, BM, BC, BD, EMULATED
        )  # fmt: skip
        if block % across == 0:
            common = tl.sum(tl.reshape(change, (BM // K2, K2, BC)), axis=1)
            own = tl.arange(0, BM // K2)
            at = to_groups + first * C + (own[:, None] * C + col[None, :])
            tl.store(at, common, mask=(first + own < groups)[:, None] & (col < C)[None, :])
        hidden = load_first(source, lift, first * K, row, valid, mid, A, POINTS)
        hidden = lower(relu(normalise(hidden, first_norm, mid, A)), dtype, EMULATED)
        total = product(tl.trans(lower(change, dtype, EMULATED)), hidden, total, EMULATED)
    at = partial + program.to(tl.int64) * C * A + (col[:, None] * A + mid[None, :])
    tl.store(at, total, mask=(col < C)[:, None] & (mid < A)[None, :])


@triton.jit(do_not_specialize=["groups", "tiles"])
def members_backward_kernel(
    grad, winners, last, joined, norm, from_hidden, pooled_grad, pooled_winners, widen, source, lift, first_norm,
    to_rows, partial, groups, tiles, K, A: tl.constexpr, C: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    K2: tl.constexpr, BM: tl.constexpr, BA: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, POINTS: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Carry the gradient g to before the first ReLU, along both ways that leave the hidden rows.

    Points: g is not stored, only the sums of g * (x, y, z, 1) over `tiles` tiles, (programs, 4, A). Else: g (R, A), and the sums of g and
    of g * (value - mean), (programs, 2, A).
    """
    across: tl.constexpr = (A + BA - 1) // BA
    program = tl.program_id(0) // across
    mid = (tl.program_id(0) % across) * BA + tl.arange(0, BA)
    dtype = last.dtype.element_ty
    sum_0 = tl.zeros((BA,), tl.float32)
    sum_1 = tl.zeros((BA,), tl.float32)
    sum_2 = tl.zeros((BA,), tl.float32)
    sum_3 = tl.zeros((BA,), tl.float32)
    for step in range(tiles):
        tile = program * tiles + step
        first, group, row, member, valid = locate(tile, groups, K, K2, BM)
        total = tl.zeros((BM, BA), tl.float32)
        for start in range(0, C, BC):
            col = start + tl.arange(0, BC)
            x = load_rows(joined, first * K, row, valid, col, C)
            change = joined_gradient(
                x, grad, winners, last, norm, first, group, member, valid, col, C, D, BM, BC, BD, EMULATED
            )  # fmt: skip
            change = lower(change, dtype, EMULATED)
            total = product(change, load_weight(from_hidden, col, C, mid, A), total, EMULATED)
        for start in range(0, W, BD):
            out = start + tl.arange(0, BD)
            sent = spread(pooled_grad, pooled_winners, first, group, member, valid, out, W)
            total = product(sent, load_weight(widen, out, W, mid, A), total, EMULATED)
        value = load_first(source, lift, first * K, row, valid, mid, A, POINTS)
        g = tl.where((normalise(value, first_norm, mid, A) > 0) & valid[:, None], total, 0.0)
        if POINTS:
            sum_0 += tl.sum(g * load_axis(source, first * K, row, valid, 0), 0)
            sum_1 += tl.sum(g * load_axis(source, first * K, row, valid, 1), 0)
            sum_2 += tl.sum(g * load_axis(source, first * K, row, valid, 2), 0)
            sum_3 += tl.sum(g, 0)
        else:
            at = to_rows + first * K * A + (row[:, None] * A + mid[None, :])
            tl.store(at, lower(g, dtype, EMULATED), mask=valid[:, None] & (mid < A)[None, :])
            sum_0 += tl.sum(g, 0)
            sum_1 += tl.sum(g * (value - of_norm(first_norm, 0, mid, A)), 0)
    count = 4 if POINTS else 2
    at = partial + program.to(tl.int64) * count * A + mid
    tl.store(at, sum_0, mask=mid < A)
    tl.store(at + A, sum_1, mask=mid < A)
    if POINTS:
        tl.store(at + 2 * A, sum_2, mask=mid < A)
        tl.store(at + 3 * A, sum_3, mask=mid < A)


@triton.jit(do_not_specialize=["rows"])
def norm_backward_kernel(
    flow, x, norm, change, rows, A: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EMULATED: tl.constexpr
):
    """Carry the gradient (R, A) of a norm's result to its argument x."""
    blocks: tl.constexpr = (A + BN - 1) // BN
    start = (tl.program_id(0) // blocks).to(tl.int64) * BM
    col = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    row = tl.arange(0, BM)
    valid = start + row < rows
    offset = load_rows(x, start, row, valid, col, A) - of_norm(norm, 0, col, A)
    value = load_rows(flow, start, row, valid, col, A) * of_norm(norm, 1, col, A)
    value += of_norm(norm, 3, col, A) * offset + of_norm(norm, 4, col, A)
    at = change + start * A + (row[:, None] * A + col[None, :])
    tl.store(at, lower(value, change.dtype.element_ty, EMULATED), mask=valid[:, None] & (col < A)[None, :])
