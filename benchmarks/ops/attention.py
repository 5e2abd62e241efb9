"""Time self-attention with narrow heads on the CPU against PyTorch's fused form, both interleaved in one run.

    python -m benchmarks.ops.attention --out benchmarks/results/attention-cpu.json

From the joint projection to the output, and from the gradient of one to that of the other, at the shapes of the models. Times are CPU
time of the process, which neighbours on the machine disturb less than the clock on the wall; ratios are medians of the rounds' ratios.
Both sides must agree on all real tokens before they are timed.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.ops.timing import machine
from datasets import build_dataset
from extensions import attention, fps, gather, near_first
from extensions.m2ae_ops.private.attention import by_pytorch
from models.hierarchical import within
from utils.device import keep_freed_memory
from utils.provenance import provenance

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the norm of the difference against that of the value


class Shape(NamedTuple):
    """Samples, tokens, the fewest real tokens of a sample, heads and channels of a head, and how far tokens attend; 0: to all."""

    title: str
    B: int
    L: int
    fewest: int
    H: int
    D: int
    radius: float = 0.0


SHAPES = (
    Shape("Point-M2AE, finest scale", 32, 350, 244, 6, 16),  # 297 real tokens in the mean
    Shape("Point-M2AE, middle scale", 32, 104, 84, 6, 32),
    Shape("Point-M2AE, coarsest scale", 32, 13, 13, 6, 64),
    Shape("Point-M2AE fine-tuning, finest scale", 32, 512, 512, 6, 16, 0.32),
    Shape("Point-M2AE fine-tuning, middle scale", 32, 256, 256, 6, 32, 0.64),
    Shape("Point-M2AE fine-tuning, coarsest scale", 32, 64, 64, 6, 64, 1.28),
    Shape("Point-MAE, encoder", 32, 26, 26, 6, 64),
    Shape("Point-MAE, decoder", 32, 64, 64, 6, 64),
)


class Inputs(NamedTuple):
    """A joint projection (B, L, 3, H, D), a gradient (B, L, H * D), real tokens (B, L) and who attends to whom (B, L, L)."""

    qkv: Tensor
    grad: Tensor
    valid: Tensor | None = None
    attend: Tensor | None = None


def draw(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Return random inputs of a shape."""
    qkv = torch.randn(shape.B, shape.L, 3, shape.H, shape.D, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(shape.B, shape.L, shape.H * shape.D, generator=generator).to(dtype)
    if shape.radius:
        return Inputs(qkv, grad, attend=near_pairs(shape.B, shape.L, shape.radius))
    if shape.fewest == shape.L:
        return Inputs(qkv, grad)
    counts = torch.linspace(shape.fewest, shape.L, shape.B).long()
    real = torch.arange(shape.L) < counts.unsqueeze(1)  # (B, L)
    return Inputs(qkv, grad * real.unsqueeze(-1), real)


@functools.cache
def near_pairs(B: int, L: int, radius: float) -> Tensor:
    """Return which of L centres of B built-in clouds are nearer than a radius, (B, L, L), the centres ordered as the models do."""
    clouds = build_dataset({"NAME": "Synthetic", "clouds": max(B, 20)})
    points = torch.from_numpy(clouds.points[:B, :1024].copy())
    centers = gather(points, fps(points, L))
    centers = gather(centers, near_first(centers))
    return within(centers, radius)


def ours(given: Inputs) -> Tensor:
    """Run our attention."""
    return attention(given.qkv, given.valid, given.attend)


def fused(given: Inputs) -> Tensor:
    """PyTorch's fused form, in fp32 for bf16, which is faster and more exact."""
    return by_pytorch(given.qkv, given.valid, given.attend)


SIDES: dict[str, Callable[[Inputs], Tensor]] = {"fused": fused, "ours": ours}


def step(form: Callable[[Inputs], Tensor], given: Inputs) -> tuple[Tensor, Tensor, float, float]:
    """Return output, gradient, and the milliseconds of forward and backward."""
    started = time.process_time()
    out = form(given)
    between = time.process_time()
    (grad,) = torch.autograd.grad(out, given.qkv, given.grad)
    return out.detach(), grad, 1000 * (between - started), 1000 * (time.process_time() - between)


def difference(given: Inputs) -> float:
    """Return how far our output and gradient are from those of the other side, on real tokens, relative to their norm."""
    found = {name: step(form, given)[:2] for name, form in SIDES.items()}
    worst = 0.0
    for a, b in zip(found["ours"], found["fused"], strict=True):
        if given.valid is not None:
            a, b = a[given.valid], b[given.valid]
        worst = max(worst, float((a.double() - b.double()).norm() / b.double().norm()))
    return worst


def measure(shape: Shape, precision: str, rounds: int) -> dict:
    """Time all sides in turn, round by round, each round beginning with another one."""
    generator = torch.Generator().manual_seed(0)
    apart = difference(draw(shape, DTYPES[precision], generator))
    if apart > TOLERANCE[precision]:
        raise SystemExit(f"benchmarks.ops.attention: {shape.title}, {precision}: the sides differ by {apart:.1e}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    for turn in range(rounds):
        given = draw(shape, DTYPES[precision], generator)
        for name in sorted(SIDES, reverse=bool(turn % 2)):
            times[name].append(step(SIDES[name], given)[2:])
    row = {"shape": shape._asdict(), "precision": precision, "relative_difference": float(f"{apart:.1e}")}
    for number, way in enumerate(("forward", "backward")):
        mine, theirs = ([pair[number] for pair in times[name]] for name in ("ours", "fused"))
        ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        row[way] = {
            "ours_ms": round(statistics.median(mine), 3),
            "fused_ms": round(statistics.median(theirs), 3),
            "ratio": round(ratio, 2),
        }
    return row


def line(row: dict) -> str:
    """Return a row as text."""
    shape = row["shape"]
    ways = (
        f"{way} {row[way]['ours_ms']:.2f} against {row[way]['fused_ms']:.2f} ms = {row[way]['ratio']}x"
        for way in ("forward", "backward")
    )
    return f"{shape['title']} (L {shape['L']}, D {shape['D']}), {row['precision']}: {', '.join(ways)}"


def main(arguments: list[str] | None = None) -> None:
    """Time all shapes and write the result."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.ops.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, help="samples; default: those of the shapes, 32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if min(args.threads, args.rounds, args.batch or 1) < 1:
        parser.error("--threads, --rounds and --batch must be at least 1")
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as main.py does
    rows = []
    for shape in SHAPES:
        shape = shape._replace(B=args.batch or shape.B)
        for precision in DTYPES:
            rows.append(measure(shape, precision, args.rounds))
            print(line(rows[-1]), flush=True)
    if args.out:
        about = provenance() | {"Command": " ".join(["benchmarks.ops.attention", *(arguments or sys.argv[1:])])}
        result = {"provenance": about, "machine": machine(), "threads": args.threads, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
