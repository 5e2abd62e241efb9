"""Time the ops on a GPU against the packages and PyTorch forms people use, all sides interleaved in one run; medians.

    python -m benchmarks.gpu_ops --out benchmarks/results/ops-gpu.json

CUDA events, a fresh random input every round, the L2 cache flushed before each call; before it is timed, every peer must agree with
our result. Without `--out` the JSON file and its table go to the folder $OUT, if that is set. Ends with status 2 where there is
no GPU and with 1 if a peer disagreed.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks.ops.case import DISTRIBUTIONS, run_case, version
from benchmarks.ops.cases import GPU_SIZES, build_cases
from benchmarks.ops.clouds import KINDS, Clouds
from benchmarks.ops.cpu import check_rows, finish, summary
from benchmarks.ops.table import write_results
from benchmarks.ops.timing import CudaClock, machine
from extensions.m2ae_ops.loader import has_kernel

OPS = ("fps", "knn", "ball_query", "gather", "gather_backward", "group", "three_nn", "three_interpolate", "chamfer")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = parse(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu_ops: PyTorch finds no CUDA device here; run it on a machine with a GPU", file=sys.stderr)
        return 2
    return finish(measure(args), args.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_ops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("OUT")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=[], help="keys of rows; default: all")
    parser.add_argument("--data", choices=KINDS, default="uniform")
    parser.add_argument("--repeats", type=int, default=30, help="rounds a row, at most")
    parser.add_argument("--budget", type=float, default=30, help="seconds a row, about; three rounds are always made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="without the compiled PyTorch forms")
    parser.add_argument("--out", type=Path, default=Path(folder) / "ops-gpu.json" if folder else None)
    args = parser.parse_args(arguments)
    check_rows(parser, args.rows)
    return args


def measure(args: argparse.Namespace) -> dict:
    """Measure all rows on the current device, each written when it is there; returns what is written."""
    clock, device = CudaClock(), torch.device("cuda")
    kernels = [name for name in OPS if has_kernel(f"m2ae::{name}", device)]
    rows: list[dict] = []
    results = {
        "format": 1,
        "machine": machine() | {"ops": f"CUDA kernels: {', '.join(kernels) or 'none, PyTorch reference'}"},
        "packages": {DISTRIBUTIONS[package]: version(package) for package in DISTRIBUTIONS},
        "settings": {"repeats": args.repeats, "budget_s": args.budget, "seed": args.seed},
        "runs": [{"threads": None, "data": args.data, "rows": rows}],
    }
    for case in build_cases(GPU_SIZES, Clouds(args.data, device="cuda", seed=args.seed)):
        if args.rows and case.key not in args.rows:
            continue
        rows.append(
            run_case(case, clock, device="cuda", rounds=args.repeats, budget_s=args.budget, compiled=not args.quick)
        )
        print(summary(rows[-1]), file=sys.stderr, flush=True)
        if args.out:  # whoever set a limit of time keeps those that are done
            write_results(args.out, results)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
