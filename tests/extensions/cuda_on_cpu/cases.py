"""Small inputs that take every path of every CUDA kernel once, and larger sets; each with what it is compared with.

    python -m tests.extensions.cuda_on_cpu.cases LIBRARY [--large] [--families fps,knn] [--seed 11] [--device major=7]

runs them against a built library and prints a JSON line: cases, comparisons, seconds, differences.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

import extensions  # noqa: F401  declares the ops
from extensions.m2ae_ops import reference as references
from extensions.m2ae_ops.loader import has_kernel
from extensions.m2ae_ops.reference import chamfer, emd, indexing, neighbors, rows, sampling  # noqa: F401
from tests.extensions.cuda_on_cpu.build import Emulated

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
KINDS = ("normal", "grid", "corners", "equal", "duplicates", "spoiled", "nan", "huge", "tiny", "origin", "zero")
MODULES = {
    "fps": "sampling", "fps_nested": "sampling", "knn": "neighbors", "three_nn": "neighbors", "ball_query": "neighbors",
    "chamfer": "chamfer", "chamfer_backward": "chamfer", "chamfer_loss": "chamfer", "gather": "indexing", "group": "indexing",
    "gather_backward": "indexing", "three_interpolate": "indexing", "three_interpolate_backward": "indexing", "emd": "emd",
    "row_sums": "rows",
}  # fmt: skip
# Outputs that sums in another order may change: (relative, absolute) at float32; all others must be equal to the bit.
ROUNDED = {
    "reference": {("chamfer_backward", 0), ("chamfer_backward", 1), ("chamfer_loss", 0), ("chamfer_loss", 1), ("chamfer_loss", 2),
                  ("gather_backward", 0), ("three_interpolate_backward", 0), ("three_interpolate_backward", 1), ("row_sums", 0)},
    "compiled": {("chamfer_loss", 0), ("chamfer_loss", 1), ("chamfer_loss", 2), ("three_interpolate_backward", 1)},
}  # fmt: skip
EPS = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4, torch.float64: 1e-12}


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        family: what it belongs to.
        name: which path it takes.
        op: name of the op.
        arguments: makes the arguments, always the same ones.
        device: what the emulated device is, see `Emulated.set`.
        against: what results are compared with.
    """

    family: str
    name: str
    op: str
    arguments: Callable[[], tuple]
    device: dict[str, int] = field(default_factory=dict)
    against: tuple[str, ...] = ("reference", "compiled")


def cloud(kind: str, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return points (..., 3) of a kind, always the same ones."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(*shape, 3, generator=rng, dtype=torch.float64)
    if kind == "grid":
        points = torch.randint(-2, 3, points.shape, generator=rng).double() / 2
    elif kind == "corners":  # of a cube: many equally far points
        points = torch.randint(0, 2, points.shape, generator=rng).double() * 2 - 1
    elif kind == "equal":
        points = points[..., :1, :].expand_as(points)
    elif kind == "duplicates":
        points = points[..., torch.randint(0, max(1, shape[-1] // 3), (shape[-1],), generator=rng), :]
    elif kind == "spoiled":
        draw = torch.rand(points.shape, generator=rng)
        points = points.masked_fill(draw < 0.02, torch.nan).masked_fill(draw > 0.99, torch.inf)
    elif kind == "nan":
        points = torch.full_like(points, torch.nan)
    elif kind in ("huge", "tiny"):
        points = points * (1e19 if kind == "huge" else 1e-22)
    elif kind == "origin":
        points = points * 0.02
    elif kind == "zero":
        points = torch.zeros_like(points)
    return points.to(dtype).contiguous()


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers, always the same ones."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype)


def indices(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Return indices below `high`, always the same ones."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


# ---- what results are compared with ----------------------------------------------------------------------------------


def expected_from(source: str, op: str, arguments: tuple) -> tuple[Tensor, ...] | None:
    """Return the results of the reference or of the compiled CPU library; None where there are none."""
    if source == "reference":
        if op == "fps_nested":
            return tuple(_reference_nested(*arguments))
        return _as_tuple(getattr(getattr(references, MODULES[op]), op)(*arguments))
    if op == "chamfer_loss":
        return _compiled_loss(*arguments)
    if not has_kernel(f"m2ae::{op}", torch.device("cpu")):
        return None
    return _as_tuple(getattr(torch.ops.m2ae, op)(*arguments))


def _reference_nested(points: Tensor, counts: list[int], skip: bool, tie_break: str) -> Iterator[Tensor]:
    for count in counts:
        idx = sampling.fps(points, count, skip, tie_break)
        yield idx
        points = indexing.gather(points, idx)


def _compiled_loss(a: Tensor, b: Tensor, root: bool, want_a: bool, want_b: bool) -> tuple[Tensor, ...] | None:
    """The CPU has another op for the loss: it keeps who chose whom and works gradients out later."""
    if not has_kernel("m2ae::chamfer_chosen", torch.device("cpu")) or a.dtype in HALVES:
        return None
    losses, i1, i2 = torch.ops.m2ae.chamfer_chosen(a, b, root)
    gradients = torch.ops.m2ae.chamfer_chosen_backward(torch.ones_like(losses), a, b, i1, i2, root, want_a, want_b)
    return losses, *gradients


def _as_tuple(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def difference(found: Tensor, expected: Tensor, rounded: bool) -> str | None:
    """Say how two results differ, or return None. NaN equals NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{tuple(found.shape)} {found.dtype}, not {tuple(expected.shape)} {expected.dtype}"
    if not found.numel():
        return None
    same = (found == expected) | (found.isnan() & expected.isnan()) if found.is_floating_point() else found == expected
    if rounded and found.is_floating_point():
        # Sums may cancel, so what counts is the size of the largest value of a row.
        sizes = expected.double().nan_to_num(0, 0, 0).abs()
        scale = sizes.flatten(1).amax(-1) if sizes.dim() > 1 else sizes
        scale = scale.clamp_min(1).view(-1, *[1] * (expected.dim() - 1))
        same |= (found.double() - expected.double()).abs() <= EPS[found.dtype] * scale
    wrong = int((~same).sum())
    if not wrong:
        return None
    at = tuple((~same).nonzero()[0].tolist())
    return f"{wrong} of {found.numel()} values differ, first at {at}: {found[at].item()!r}, not {expected[at].item()!r}"


def run(cases: Iterator[Case], emulated: Emulated, *, seed: int = 0, **settings: int) -> dict:
    """Run cases; return how many there were, how many comparisons, the seconds in all, and the differences in words."""
    total = {"cases": 0, "comparisons": 0, "seconds": 0.0, "seconds_emulated": 0.0, "differences": []}
    began = time.perf_counter()
    for case in cases:
        arguments = case.arguments()
        emulated.set(**{**case.device, **settings}, seed=seed)
        total["cases"] += 1
        start = time.perf_counter()
        try:
            found = call(getattr(emulated, case.op), arguments)
        except RuntimeError as error:  # what the runtime of the emulator objects to
            total["differences"].append(f"{case.family}, {case.name}: {str(error).splitlines()[0]}")
            continue
        total["seconds_emulated"] += time.perf_counter() - start
        for source in case.against:
            expected = expected_from(source, case.op, arguments)
            for position, (one, other) in enumerate(zip(found, expected or (), strict=False)):
                total["comparisons"] += 1
                apart = difference(one, other, (case.op, position) in ROUNDED[source])
                if apart:
                    total["differences"].append(
                        f"{case.family}, {case.name}: {case.op}[{position}] against {source}: {apart}"
                    )
    total["seconds"] = time.perf_counter() - began
    return total


def call(op: Callable, arguments: tuple) -> tuple[Tensor, ...]:
    """Call an op with the memory that PyTorch hands out filled with NaN or the largest integer."""
    torch.use_deterministic_algorithms(True)
    try:
        return _as_tuple(op(*arguments))
    finally:
        torch.use_deterministic_algorithms(False)


# ---- what ops are called with ----------------------------------------------------------------------------------------


def _sampled(kind: str, batch: int, count: int, samples, skip=False, tie_break="lowest", dtype=torch.float32) -> tuple:
    return cloud(kind, batch, count, dtype=dtype), samples, skip, tie_break


def _searched(kinds: tuple[str, str], queries: int, count: int, dtype: torch.dtype, *rest) -> tuple:
    """Return queries and support points of two kinds, and what else the search takes."""
    return cloud(kinds[0], 2, queries, seed=1, dtype=dtype), cloud(kinds[1], 2, count, dtype=dtype), *rest


def _pairs(n: int, m: int, kind: str, dtype: torch.dtype, *rest, pairs: int = 3) -> tuple:
    """Return pairs of clouds that have a point in common, and what else the op takes."""
    a, b = cloud(kind, pairs, n, dtype=dtype), cloud(kind, pairs, m, seed=1, dtype=dtype)
    b[:, 0] = a[:, n // 2]
    return a, b, *rest


def _with_gradients(n: int, m: int, dtype: torch.dtype) -> tuple:
    a, b = _pairs(n, m, "grid", dtype)
    d1, d2, i1, i2 = chamfer.chamfer(a, b)
    return d1 + 1, d2 + 1, a, b, i1, i2


def _gathered(rows_: int, channels: int, dtype: torch.dtype, *shape: int) -> tuple:
    return (values(2, rows_, channels) * 9).to(dtype), indices(rows_, 2, *shape)


def _misaligned() -> tuple:
    return values(1, 2 * 50 * 4 + 1)[0, 1:].view(2, 50, 4), indices(50, 2, 20)


def _returned(rows_: int, channels: int, dtype: torch.dtype, *shape: int) -> tuple:
    """Return gradients of gathered rows, who was gathered, and of how many rows; the last one has no entries."""
    return values(2, *shape, channels, dtype=dtype), indices(rows_, 2, *shape), rows_ + 1


def _grouped(dtype: torch.dtype, count: int = 50, queries: int = 9, k: int = 7) -> tuple:
    centers = cloud("normal", 2, queries, seed=1, dtype=dtype)
    return cloud("normal", 2, count, dtype=dtype), centers, indices(count, 2, queries, k)


def _weights(points: int) -> Tensor:
    return values(2, points, 3, seed=2).abs()


def _interpolated(dtype: torch.dtype) -> tuple:
    return values(2, 30, 9, dtype=dtype), indices(30, 2, 40, 3), _weights(40)


def _interpolated_back(rows_: int, channels: int, points: int, dtype: torch.dtype) -> tuple:
    grad, known = values(2, points, channels, dtype=dtype), values(2, rows_, channels, seed=1, dtype=dtype)
    return grad, known, indices(rows_, 2, points, 3), _weights(points)


def _matched(count: int, kind: str, dtype: torch.dtype, iters: int, bijective: bool) -> tuple:
    return cloud(kind, 2, count, dtype=dtype), cloud(kind, 2, count, seed=1, dtype=dtype), 0.005, iters, bijective


def _summed(rows_: int, channels: int, dtype: torch.dtype) -> tuple:
    x, y = values(rows_, channels, dtype=dtype), values(rows_, channels, seed=1, dtype=dtype)
    return x, y, values(channels, seed=2).double()


# ---- every path once -------------------------------------------------------------------------------------------------


def small_cases() -> Iterator[Case]:
    """Yield a small case of every path of every kernel."""
    yield from _sampling_cases()
    for dtype in FLOATS:
        yield from _neighbour_cases(dtype)
        yield from _chamfer_cases(dtype)
        yield from _matching_cases(dtype)
    yield from _indexing_cases()


LITTLE = {"shared_limit": 64 * 1024}
SAMPLING = (  # name, arguments of _sampled, device
    ("block 32x4", ("corners", 2, 100, 24), {}),
    ("block 128x4", ("grid", 2, 300, 24), {}),
    ("block 256x4", ("corners", 2, 1000, 24, True, "pointnet2"), {}),
    ("block 256x8", ("corners", 2, 2000, 24), {}),
    ("block 512x8", ("normal", 1, 4000, 12, True, "pointnet2"), {}),
    ("block 1024x8", ("corners", 1, 8000, 12), {}),
    ("block 1024x8, little shared memory", ("grid", 1, 8000, 6), LITTLE),
    ("block 256x4, spoiled", ("spoiled", 2, 777, 30, True, "pointnet2"), {}),
    ("more samples than points", ("normal", 2, 5, 12), {}),
    ("nobody to choose", ("nan", 1, 40, 5), {}),
    ("cluster of 2, full registers", ("normal", 1, 9000, 6, True, "pointnet2"), {"processors": 1}),
    ("cluster of 4, half registers", ("corners", 1, 9000, 5), {}),
    ("cluster of 16", ("normal", 1, 40_000, 3), {}),
    ("strided: old device", ("corners", 1, 9000, 9), {"major": 8}),
    ("strided: no cluster fits", ("corners", 1, 9000, 9, True, "pointnet2"), {"largest_cluster": 1}),
    ("strided: occupancy is an error", ("normal", 1, 9000, 4), {"occupancy": 912}),
    ("strided: the launch is refused", ("normal", 1, 9000, 4), {"cluster_launch": 9}),
    ("strided: too little shared memory", ("normal", 1, 9000, 4), LITTLE | {"processors": 1}),
    ("strided, float64", ("spoiled", 1, 1500, 12, False, "lowest", torch.float64), {}),
    ("half precision", ("normal", 1, 200, 20, False, "lowest", torch.float16), {}),
)
NESTED = (
    ((100, [40, 10]), {}),
    ((300, [64, 8]), {}),
    ((1000, [48, 16, 4]), {}),
    ((2000, [40, 8]), {}),
    ((4000, [12, 4]), {}),
    ((8000, [8, 3]), {}),
    ((8000, [5, 2]), LITTLE),
    ((300, [8, 20]), {}),
    ((9000, [6, 3]), {}),
)


def _sampling_cases() -> Iterator[Case]:
    for name, arguments, device in SAMPLING:
        yield Case("fps", name, "fps", partial(_sampled, *arguments), device)
    for (count, samples), device in NESTED:
        for kind in ("normal", "corners"):
            arguments = partial(_sampled, kind, 1, count, samples, True, "pointnet2")
            yield Case("fps", f"nested {count} {kind} {samples}", "fps_nested", arguments, device)


KNN = (
    (1, 31, "normal"),
    (16, 1100, "grid"),
    (32, 300, "spoiled"),
    (64, 1030, "normal"),
    (100, 260, "grid"),
    (300, 1100, "normal"),
)
THREE_NN = ((40, 70, 1), (200, 30, 132), (50, 130, 132), (7, 1100, 132), (3, 2, 132))  # queries, points, processors
BALLS = ((0.7, 20, 1100), (1e-3, 4, 50), (1e30, 70, 50))  # radius, k, points


def _neighbour_cases(dtype: torch.dtype) -> Iterator[Case]:
    for k, count, kind in KNN:
        yield Case("knn", f"k {k}, {dtype}", "knn", partial(_searched, ("normal", kind), 9, count, dtype, k))
    for queries, count, processors in THREE_NN:
        arguments = partial(_searched, ("grid", "spoiled"), queries, count, dtype)
        yield Case("three_nn", f"{queries} x {count}, {dtype}", "three_nn", arguments, {"processors": processors})
    for radius, k, count in BALLS:
        arguments = partial(_searched, ("normal", "spoiled"), 11, count, dtype, radius, k)
        yield Case("ball_query", f"radius {radius}, {dtype}", "ball_query", arguments)


CLOUDS = ((20, 40, "spoiled", 132), (70, 130, "grid", 132), (6, 1100, "normal", 132), (200, 33, "normal", 1))
LOSSES = (
    (32, 17, "grid", True, True),
    (5, 1, "grid", True, False),
    (24, 32, "duplicates", False, False),
    (40, 300, "normal", True, True),
    (30, 20, "spoiled", True, True),
    (45, 70, "spoiled", True, True),
)


def _chamfer_cases(dtype: torch.dtype) -> Iterator[Case]:
    for n, m, kind, processors in CLOUDS:
        yield Case(
            "chamfer", f"{n} x {m}, {dtype}", "chamfer", partial(_pairs, n, m, kind, dtype), {"processors": processors}
        )
    for n, m in ((32, 31), (200, 1100)):
        yield Case("chamfer", f"backward {n} x {m}, {dtype}", "chamfer_backward", partial(_with_gradients, n, m, dtype))
    for root, (n, m, kind, want_a, want_b) in itertools.product((False, True), LOSSES):
        arguments = partial(_pairs, n, m, kind, dtype, root, want_a, want_b, pairs=9)
        yield Case("chamfer", f"loss {n} x {m}, root {root}, {dtype}", "chamfer_loss", arguments)


ROWS = (
    (torch.float32, 8), (torch.float32, 6), (torch.float32, 3), (torch.float16, 5), (torch.uint8, 3), (torch.int64, 1),
)  # fmt: skip


def _indexing_cases() -> Iterator[Case]:
    for dtype, channels in ROWS:
        yield Case("gather", f"{channels} of {dtype}", "gather", partial(_gathered, 50, channels, dtype, 20, 3))
    yield Case("gather", "not aligned", "gather", _misaligned)
    for dtype in (*FLOATS, *HALVES):
        yield Case("group", f"{dtype}", "group", partial(_grouped, dtype))
        yield Case("interpolate", f"{dtype}", "three_interpolate", partial(_interpolated, dtype))
        arguments = partial(_interpolated_back, 11, 37, 40, dtype)
        yield Case("interpolate", f"backward, {dtype}", "three_interpolate_backward", arguments)
        yield Case(
            "gather",
            f"backward, few entries a row, {dtype}",
            "gather_backward",
            partial(_returned, 20, 37, dtype, 60, 3),
        )
        yield Case("rows", f"{dtype}", "row_sums", partial(_summed, 2100, 5, dtype))
    yield Case(
        "gather", "backward, many entries a row", "gather_backward", partial(_returned, 2, 5, torch.float32, 150)
    )
    yield Case("gather", "backward, many rows", "gather_backward", partial(_returned, 9000, 3, torch.float32, 60))


MATCHINGS = ((1, "normal", 50, False), (33, "grid", 50, True), (48, "normal", 2, False), (20, "spoiled", 50, False))


def _matching_cases(dtype: torch.dtype) -> Iterator[Case]:
    for count, kind, iters, bijective in MATCHINGS:
        yield Case("emd", f"{count} {kind}, {dtype}", "emd", partial(_matched, count, kind, dtype, iters, bijective))


# ---- many sizes ------------------------------------------------------------------------------------------------------


def large_cases() -> Iterator[Case]:
    """Yield thousands of cases: all kinds of clouds at sizes around the limits of the kernels."""
    yield from itertools.chain(_many_samples(), _many_neighbours(), _many_pairs(), _many_indices(), _many_matchings())


def _many_samples() -> Iterator[Case]:
    sizes = (1, 2, 31, 32, 33, 127, 128, 129, 511, 512, 513, 1000, 1024, 1025, 2048, 2049, 4096, 4097, 8192)
    for count, kind, skip, tie_break in itertools.product(sizes, KINDS, (False, True), ("lowest", "pointnet2")):
        samples = min(count + 3, 40 if count < 1000 else 8)
        yield Case("fps", f"{count} {kind}", "fps", partial(_sampled, kind, 1, count, samples, skip, tie_break))
    sizes = (8193, 16_384, 16_385, 40_000, 131_072, 131_073)
    for count, processors, kind in itertools.product(sizes, (1, 132), ("normal", "corners", "spoiled")):
        arguments = partial(_sampled, kind, 1, count, 4, True, "pointnet2")
        yield Case("fps", f"{count} {kind}, {processors} processors", "fps", arguments, {"processors": processors})
    scales = ([64, 16, 4], [16, 64], [8, 8, 8])
    for count, kind, samples in itertools.product((1, 2, 100, 600, 1024, 2048), KINDS, scales):
        yield Case("fps", f"nested {count} {kind} {samples}", "fps_nested", partial(_sampled, kind, 2, count, samples))


def _many_neighbours() -> Iterator[Case]:
    counts, wanted = (
        (1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 2100),
        (1, 3, 16, 17, 32, 33, 64, 65, 128, 129, 300),
    )
    for count, k, kind, dtype in itertools.product(counts, wanted, KINDS, FLOATS):
        if k <= count:
            yield Case("knn", f"{count} {kind}, k {k}", "knn", partial(_searched, ("grid", kind), 5, count, dtype, k))
    for count, queries, kind, dtype in itertools.product(counts, (1, 33, 70), KINDS, FLOATS):
        search = partial(_searched, (kind, kind), queries, count, dtype)
        for processors in (1, 132):
            yield Case("three_nn", f"{queries} x {count} {kind}", "three_nn", search, {"processors": processors})
        for radius, k in ((1e-3, 3), (0.5, 20), (1e30, 70)):
            yield Case("ball_query", f"{queries} x {count} {kind}", "ball_query", partial(search, radius, k))


def _many_pairs() -> Iterator[Case]:
    sizes = (1, 31, 32, 33, 128, 129, 1000, 1025)
    for n, m, kind, dtype in itertools.product(sizes, sizes, KINDS, FLOATS):
        if n * m > 200_000:
            continue
        pairs = partial(_pairs, n, m, kind, dtype)
        yield Case("chamfer", f"{n} x {m} {kind}", "chamfer", pairs)
        # The mean of the reference overflows where the kernel sums in float64.
        against = ("compiled",) if kind == "huge" and dtype == torch.float32 else ("reference", "compiled")
        for root, want_a in itertools.product((False, True), (False, True)):
            arguments = partial(pairs, root, want_a, True)
            yield Case("chamfer", f"loss {n} x {m} {kind}, root {root}", "chamfer_loss", arguments, against=against)


def _many_indices() -> Iterator[Case]:
    sizes = itertools.product((*FLOATS, *HALVES), (1, 2, 3, 33, 64), (1, 3, 100, 9000), (1, 31, 33, 500))
    for dtype, channels, rows_, entries in sizes:
        name = f"{entries} of {rows_} x {channels}, {dtype}"
        yield Case("gather", f"backward {name}", "gather_backward", partial(_returned, rows_, channels, dtype, entries))
        yield Case("gather", name, "gather", partial(_gathered, rows_, channels, dtype, entries))
        arguments = partial(_interpolated_back, rows_, channels, entries, dtype)
        yield Case("interpolate", f"backward {name}", "three_interpolate_backward", arguments)
    for count, queries, k, dtype in itertools.product((1, 33, 2100), (1, 9, 300), (1, 7, 33), FLOATS):
        grouped = partial(_grouped, dtype, count, queries, k)
        yield Case("group", f"{queries} x {k} of {count}, {dtype}", "group", grouped)
    for rows_, channels, dtype in itertools.product((1, 2047, 2048, 2049, 5000), (1, 7, 130), FLOATS):
        yield Case("rows", f"{rows_} x {channels}", "row_sums", partial(_summed, rows_, channels, dtype))


def _many_matchings() -> Iterator[Case]:
    bids = ((3, False), (50, False), (50, True))
    for count, kind, dtype, (iters, bijective) in itertools.product(
        (1, 2, 3, 16, 31, 32, 33, 64, 100), KINDS, FLOATS, bids
    ):
        yield Case("emd", f"{count} {kind}", "emd", partial(_matched, count, kind, dtype, iters, bijective))


def main(arguments: list[str] | None = None) -> int:
    """Run one of the sets and print the totals as a line of JSON; the status is 1 where something differs."""
    parser = argparse.ArgumentParser(prog="tests.extensions.cuda_on_cpu.cases")
    parser.add_argument("library")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--families", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--every", type=int, default=1, help="run only every so many cases")
    parser.add_argument("--seed", type=int, default=0, help="threads run in a random order; 0: in theirs")
    parser.add_argument(
        "--device", action="append", default=[], help="NAME=NUMBER of the device in all cases, see emulator_set"
    )
    args = parser.parse_args(arguments)
    made = large_cases() if args.large else small_cases()
    cases = (case for case in made if not args.families or case.family in args.families)
    cases = itertools.islice(cases, 0, None, args.every)
    settings = {name: int(value) for name, value in (text.split("=") for text in args.device)}
    total = run(cases, Emulated(args.library), seed=args.seed, **settings)
    print(json.dumps(total))
    return 1 if total["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
