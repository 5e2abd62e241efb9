"""Check and time the fused patch embedding against the plain layers on a GPU, both interleaved in one run; medians.

    python -m benchmarks.gpu_embed --out benchmarks/results/embed-gpu.json
    python -m benchmarks.gpu_embed --traffic        # what either moves through memory, worked out; needs no GPU

Forward and backward at the shapes of the models, in bf16 and fp32. Both sides run on the same layers and members; before they are timed,
tokens and all gradients must agree: in fp32 to rounding, in bf16 as far as the plain layers themselves are from fp32. Ends
with status 2 where there is no GPU and with 1 if the fused side disagreed or did not run.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ops.embed_traffic import SHAPES, Shape, table
from benchmarks.ops.timing import CudaClock, interleave, machine, median
from extensions.m2ae_ops.private import embedding
from models.layers.embed import PatchEmbed

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUNDING = 1e-3  # of fp32, in gradients that sum over all members
SIDES = ("plain", "fused")


class Case:
    """A patch embedding with members (B * G * K, P) and a gradient of its tokens, in one precision."""

    def __init__(self, shape: Shape, batch: int, precision: str, device: str, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.shape, self.dtype, self.device = shape, DTYPES[precision], torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = PatchEmbed(shape.P, shape.D, widths=(shape.A, shape.W, shape.C))
        self.layers = layers.to(device).train()
        groups = batch * shape.groups
        self.rows = torch.randn(groups * shape.k, shape.P, generator=generator).to(device).requires_grad_(shape.P != 3)
        self.flow = torch.randn(groups, shape.D, generator=generator).to(device)
        self.leaves = [
            p for name, p in self.layers.named_parameters() if not name.endswith(("0.bias", "first_conv.3.bias"))
        ]
        self.leaves += [self.rows] if self.rows.requires_grad else []

    def run(self, side: str, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return tokens and all gradients of one side; `dtype` other than the case's for a comparison."""
        dtype = dtype or self.dtype
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            form = embedding.plain if side == "plain" else embedding.in_one_op
            tokens = form(embedding.layers_of(*self.layers.layers()), self.rows, self.shape.k)
        return [tokens.detach(), *torch.autograd.grad(tokens, self.leaves, self.flow.to(tokens.dtype))]

    def disagreement(self) -> str | None:
        """Return where the fused side is further from the plain one than its precision explains, or None."""
        exact = self.run("plain", torch.float32)
        plain, fused = exact if self.dtype == torch.float32 else self.run("plain"), self.run("fused")
        for place, (value, usual, own) in enumerate(zip(exact, plain, fused, strict=True)):
            size = float(value.norm())
            error, common = float((own - value).norm()), float((usual - value).norm())
            if not error <= max(1.5 * common, (ROUNDING if self.dtype == torch.float32 else 0.02) * size):
                what = "tokens" if place == 0 else f"gradient {place}"
                return f"{what}: {error / size:.1e} from fp32, the plain layers {common / size:.1e}"
        return None


def measure(case: Case, clock: Callable, *, rounds: int, budget_s: float) -> dict:
    """Time both sides of a case; returns medians in ms, their ratio and the largest memory in MB."""
    sides = {side: (lambda inputs, side=side: (case.run, (side,))) for side in SIDES}
    times = interleave(sides, tuple, clock, rounds=rounds, budget_s=budget_s)
    found = {"times_ms": times, "ms": {side: median(times[side]) for side in SIDES}}
    found["ratio"] = found["ms"]["plain"] / found["ms"]["fused"]
    if case.device.type == "cuda":
        found["memory_mb"] = {side: _peak(case, side) for side in SIDES}
    return found


def _peak(case: Case, side: str) -> float:
    torch.cuda.reset_peak_memory_stats()
    case.run(side)
    return torch.cuda.max_memory_allocated() / 2**20


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("OUT")
    parser.add_argument("--batch", type=int, default=128, help="samples")
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=float, default=10, help="seconds a row, about; three rounds are always made")
    parser.add_argument("--traffic", action="store_true", help="print what is worked out and end")
    parser.add_argument("--out", type=Path, default=Path(folder) / "embed-gpu.json" if folder else None)
    args = parser.parse_args(arguments)
    if unknown := set(args.precisions) - set(DTYPES):
        parser.error(f"--precisions: {', '.join(sorted(unknown))} is not among {', '.join(DTYPES)}")
    if args.batch < 1:
        parser.error(f"--batch {args.batch}: at least 1")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse(arguments)
    if args.traffic:
        print(table())
        return 0
    if not torch.cuda.is_available():
        print(
            "benchmarks.gpu_embed: PyTorch finds no CUDA device here; run it on a machine with a GPU", file=sys.stderr
        )
        return 2
    rows, failed = [], False
    clock = CudaClock()
    for precision in args.precisions:
        for shape in SHAPES:
            row = {"title": shape.title, "precision": precision, "batch": args.batch}
            row |= _measured_or_refused(Case(shape, args.batch, precision, "cuda"), clock, args)
            failed |= "refused" in row
            rows.append(row)
            print(line(row), flush=True)
            if args.out:  # after every row, since whoever set a limit of time keeps those that are done
                _write(args.out, rows)
    return int(failed)


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "machine": machine(), "rows": rows}, indent=1) + "\n")


def _measured_or_refused(case: Case, clock: Callable, args: argparse.Namespace) -> dict:
    try:
        reason = case.disagreement()
    except Exception as error:  # a kernel that does not compile here must not hide the other rows
        reason = f"{type(error).__name__}: {error}"
    return {"refused": reason} if reason else measure(case, clock, rounds=args.rounds, budget_s=args.budget)


def line(row: dict) -> str:
    """Return a row for people."""
    head = f"{row['precision']}, {row['batch']} x {row['title']}"
    if "refused" in row:
        return f"{head}: not timed, {row['refused']}"
    memory = row.get("memory_mb")
    tail = f"; {memory['fused']:.0f} against {memory['plain']:.0f} MB" if memory else ""
    return f"{head}: {row['ms']['fused']:.2f} ms against {row['ms']['plain']:.2f}, {row['ratio']:.2f}x{tail}"


if __name__ == "__main__":
    raise SystemExit(main())
