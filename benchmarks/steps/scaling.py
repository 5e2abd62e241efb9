"""Samples a second by the number of processes, on one machine: the program itself under torchrun, the global batch kept.

    python -m benchmarks.steps.scaling --out benchmarks/results/scaling-cpu.json                   # gloo, one thread a process
    python -m benchmarks.steps.scaling --device cuda --processes 1,2,4,8 --batch 512 --out benchmarks/results/scaling-gpu.json

Every round runs each number of processes once, so that what else the machine does falls on all of them; an epoch counts that follows one
which does not. The table has medians; the JSON file every value.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.steps.cases import FEWEST_CLOUDS, METHODS, SIZES, write_recipe
from utils.files import write_atomic
from utils.provenance import ROOT, provenance


def main(arguments: list[str] | None = None) -> None:
    """Measure all numbers of processes in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="point-m2ae")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--batch", type=int, default=32, help="of all processes together")
    parser.add_argument("--steps", type=int, default=3, help="steps of an epoch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    counts = [int(text) for text in args.processes.split(",")]
    if wrong := [count for count in counts if count < 1 or args.batch % count]:
        parser.error(f"--processes: {wrong[0]} does not divide the batch of {args.batch}; change one of them")
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(args.rounds):
        for count in counts:
            found[count].append(run(count, args))
    report = {
        "about": provenance(),
        **{key: getattr(args, key) for key in ("method", "size", "device", "batch", "steps")},
    }
    report["samples_per_second"] = {
        str(count): [round(value, 2) for value in values] for count, values in found.items()
    }
    print(table(found), end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, lambda file: file.write((json.dumps(report, indent=1) + "\n").encode()))


def run(count: int, args: argparse.Namespace) -> float:
    """Return the samples a second of the second of two epochs with `count` processes.

    Raises:
        SystemExit: the program failed; its last line says why.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_recipe(args.method, args.batch, max(FEWEST_CLOUDS, args.batch * args.steps), args.size)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
        flags = ["--config", "recipe.yaml", "--exp_name", "scaling", "--device", args.device]
        flags += ["--launcher", "pytorch"] if count > 1 else []
        command = [sys.executable, *launch, str(ROOT / "main.py"), *flags]
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if args.device == "cpu" else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{count} processes: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        rows = next(Path("experiments").rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, rows) if row["kind"] == "epoch"][-1]["samples_per_second"]


def table(found: dict[int, list[float]]) -> str:
    """Return medians, and their ratio to those of the first number of processes, as a Markdown table."""
    medians = {count: statistics.median(values) for count, values in found.items()}
    base = next(iter(medians.values()))
    lines = ["| processes | samples/s | ratio |", "|---|---|---|"]
    lines += [f"| {count} | {value:.1f} | {value / base:.2f} |" for count, value in medians.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
