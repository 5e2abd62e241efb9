"""What the kernels share: finding rows, the first layer, what a maximum sends back, statistics.

Legend: `G` groups of `K` members, `K2` slots a group (the next power of two), `BM` slots a tile (whole groups), `BN`, `BC`, `BD`, `BK`
columns of a block. Row g * K + k is member k of group g. Everything is computed in float32; operands of products are rounded to the
dtype of the weights, and products of float32 are never TF32.
"""

import triton
import triton.language as tl


@triton.jit
def locate(tile, groups, K, K2: tl.constexpr, BM: tl.constexpr):
    """Find the slots of a tile: its first group, and for each slot group and row counted from there, member, whether it exists.

    Positions inside a tile take 32 bits, which halves the registers of addresses; only the tile's own needs 64.
    """
    first = tile * (BM // K2)
    slot = tl.arange(0, BM)
    group = slot // K2
    member = slot % K2
    valid = (first + group < groups) & (member < K)
    return first.to(tl.int64), group, group * K + member, member, valid


@triton.jit
def product(a, b, total, EMULATED: tl.constexpr):
    """Return total + a @ b. The interpreter cannot multiply bfloat16, but float32 holds it exactly."""
    if EMULATED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def lower(x, dtype: tl.constexpr, EMULATED: tl.constexpr):
    """Round float32 to a dtype, to the nearest, even on ties; by itself the interpreter cuts bfloat16 off."""
    if EMULATED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def load_rows(source, start, row, valid, col, width):
    """Load columns of rows (R, width), counted from `start`, as float32."""
    at = row[:, None] * width + col[None, :]
    real = valid[:, None] & (col < width)[None, :]
    return tl.load(source + start * width + at, mask=real, other=0.0).to(tl.float32)


@triton.jit
def load_axis(points, start, row, valid, axis: tl.constexpr):
    """Load a coordinate of points (R, 3) as a column."""
    return tl.load(points + start * 3 + row * 3 + axis, mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def load_first(source, lift, start, row, valid, col, width, POINTS: tl.constexpr):
    """Return columns of a layer before its norm: stored, or of points (R, 3) by the weight `lift` (width, 3), worked out."""
    if POINTS:
        real = col < width
        total = load_axis(source, start, row, valid, 0) * tl.load(lift + col * 3, mask=real, other=0.0)
        for axis in tl.static_range(1, 3):
            weight = tl.load(lift + col * 3 + axis, mask=real, other=0.0)
            total += load_axis(source, start, row, valid, axis) * weight
        return total
    return load_rows(source, start, row, valid, col, width)


@triton.jit
def of_norm(norm, which: tl.constexpr, col, width):
    """Load a row of a norm: 0 mean, 1 scale, 2 shift, 3 slope, 4 offset."""
    return tl.load(norm + which * width + col, mask=col < width, other=0.0)[None, :]


@triton.jit
def normalise(x, norm, col, width):
    """Return (x - mean) * scale + shift."""
    return (x - of_norm(norm, 0, col, width)) * of_norm(norm, 1, col, width) + of_norm(norm, 2, col, width)


@triton.jit
def relu(x):
    """Return the positive part; NaN stays."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def load_weight(weight, out, outs, into, ins):
    """Load a block of a weight (outs, ins)."""
    at = out[:, None] * ins + into[None, :]
    return tl.load(weight + at, mask=(out < outs)[:, None] & (into < ins)[None, :], other=0.0)


@triton.jit
def spread(grad, winners, first, group, member, valid, col, width):
    """Return the gradient (G, width) of a maximum, at the slots that won it, zero elsewhere."""
    at = group[:, None] * width + col[None, :]
    real = valid[:, None] & (col < width)[None, :]
    won = tl.load(winners + first * width + at, mask=real, other=0).to(tl.int32) == member[:, None]
    flow = tl.load(grad + first * width + at, mask=real, other=0.0)
    return tl.where(won & real, flow, tl.zeros_like(flow))


@triton.jit
def joined_gradient(
    x, grad, winners, last, norm, first, group, member, valid, col, C: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr, BD: tl.constexpr, EMULATED: tl.constexpr,
):  # fmt: skip
    """Return the gradient of columns x of the joined rows, through maximum, last layer, ReLU and norm; zero where no row is."""
    flow = tl.zeros((BM, BC), tl.float32)
    for start in range(0, D, BD):
        out = start + tl.arange(0, BD)
        sent = spread(grad, winners, first, group, member, valid, out, D)
        flow = product(sent, load_weight(last, out, D, col, C), flow, EMULATED)
    offset = x - of_norm(norm, 0, col, C)
    scale = of_norm(norm, 1, col, C)
    passed = tl.where(offset * scale + of_norm(norm, 2, col, C) > 0, flow * scale, 0.0)
    value = passed + (of_norm(norm, 3, col, C) * offset + of_norm(norm, 4, col, C))
    return tl.where(valid[:, None], value, 0.0)


@triton.jit
def take_in(step, count, pivot, total, square, x, valid):
    """Add the rows of a tile to count, sums and sums of squares of columns, less a pivot: the mean of the first tile.

    Without a pivot, or with means of float32 merged, a column far from zero would lose its variance.
    """
    rows = tl.sum(valid.to(tl.float32), 0)
    if step == 0:
        pivot = tl.sum(tl.where(valid[:, None], x, 0.0), 0) / rows
    offset = tl.where(valid[:, None], x - pivot[None, :], 0.0)
    return count + rows, pivot, total + tl.sum(offset, 0), square + tl.sum(offset * offset, 0)


@triton.jit
def store_moments(partial, program, count, pivot, total, square, col, width):
    """Write what `take_in` gathered to (programs, 4, width)."""
    at = partial + program.to(tl.int64) * 4 * width + col
    real = col < width
    tl.store(at, tl.zeros_like(pivot) + count, mask=real)
    tl.store(at + width, pivot, mask=real)
    tl.store(at + 2 * width, total, mask=real)
    tl.store(at + 3 * width, square, mask=real)
