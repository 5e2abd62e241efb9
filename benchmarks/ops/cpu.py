"""Time the ops on the CPU against the packages and PyTorch forms people use, all sides interleaved in one run; medians.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.ops.cpu --out benchmarks/results/ops-cpu.json
    python -m benchmarks.ops.cpu --quick --rows fps-2048,knn --threads 1
    python -m benchmarks.ops.cpu --table benchmarks/results/ops-cpu.json

Each number of threads is a process of its own, so that every thread pool starts with that number. Before it is timed, every peer
must agree with our result; one that does not, is not installed or fails is listed with the reason. `--out FILE.json` receives all raw
times. How it is measured: docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.ops.case import DISTRIBUTIONS, OURS, run_case, version
from benchmarks.ops.cases import CPU_SIZES, TINY_SIZES, build_cases
from benchmarks.ops.clouds import KINDS, Clouds
from benchmarks.ops.table import markdown, write_results
from benchmarks.ops.timing import CLOCKS, machine

ROOT = Path(__file__).resolve().parents[2]
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
QUICK_ROUNDS = 3
SIZES = {"full": CPU_SIZES, "tiny": TINY_SIZES}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if a peer disagreed with our result, else 0."""
    args = parse(arguments)
    if args.table:
        print(markdown(json.loads(args.table.read_text(encoding="utf-8"))), end="")
        return 0
    if args.worker:
        args.worker.write_text(json.dumps(measure(args)), encoding="utf-8")
        return 0
    results = collect([in_own_process(args, threads) for threads in args.threads], args)
    return finish(results, args.out)


def finish(results: dict, out: Path | None) -> int:
    """Print the table, write both files if a path is given, name the peers that disagreed; returns the exit status."""
    print(markdown(results), end="")
    if out:
        write_results(out, results)
    wrong = disagreements(results)
    for line in wrong:
        print(f"disagrees: {line}", file=sys.stderr)
    return 1 if wrong else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.ops.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=_counts, default=[1, 2], help="such as 1,2")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=[], help="keys of rows; default: all")
    parser.add_argument("--data", type=_kinds, default=["uniform"], help=f"{' or '.join(KINDS)}, or both with a comma")
    parser.add_argument("--repeats", type=int, default=21, help="rounds a row, at most")
    parser.add_argument("--budget", type=float, default=60, help="seconds a row, about; three rounds are always made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: its time instead, for the runs on one thread"
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, without the compiled PyTorch forms")
    parser.add_argument("--size", choices=SIZES, default="full", help="tiny: proves the script, measures nothing")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--table", type=Path, help="only print the table of such a JSON file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    check_rows(parser, args.rows)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats} must be at least 1")
    if args.quick:
        args.repeats = min(args.repeats, QUICK_ROUNDS)
    return args


def check_rows(parser: argparse.ArgumentParser, rows: list[str]) -> None:
    """Refuse keys of rows that do not exist."""
    known = row_keys()
    if unknown := [key for key in rows if key not in known]:
        parser.error(f"--rows {','.join(unknown)} is unknown; choose from {', '.join(known)}")


def row_keys() -> list[str]:
    """Return the keys of all rows."""
    return [case.key for case in build_cases(TINY_SIZES, Clouds("uniform"))]


def in_own_process(args: argparse.Namespace, threads: int) -> dict:
    """Measure with so many threads in a fresh process; returns what `measure` does.

    Raises:
        SystemExit: the process failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.ops.cpu", "--threads", str(threads), "--worker", str(part)]
        command += ["--data", ",".join(args.data), "--repeats", str(args.repeats), "--budget", str(args.budget)]
        command += ["--seed", str(args.seed), "--size", args.size, "--clock", args.clock]
        command += ["--rows", ",".join(args.rows)] if args.rows else []
        command += ["--quick"] if args.quick else []
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if status:
            raise SystemExit(f"benchmarks.ops: the run with {threads} threads ended with status {status}")
        return json.loads(part.read_text(encoding="utf-8"))


def measure(args: argparse.Namespace) -> dict:
    """Measure all rows in this process, with its number of threads; one entry of "runs" a kind of data."""
    (threads,) = args.threads
    torch.set_num_threads(threads)
    clock = args.clock if threads == 1 else "wall"
    runs = []
    for kind in args.data:
        rows = []
        for case in build_cases(SIZES[args.size], Clouds(kind, seed=args.seed)):
            if args.rows and case.key not in args.rows:
                continue
            row = run_case(
                case,
                CLOCKS[clock],
                device="cpu",
                rounds=args.repeats,
                budget_s=args.budget,
                compiled=not args.quick,
            )
            rows.append(row)
            print(f"[threads {threads}, {kind}] {summary(row)}", file=sys.stderr, flush=True)
        facts = {"threads": threads, "data": kind, "clock": clock, "load_average": os.getloadavg()}
        runs.append(facts | {"rows": rows})
    return {"machine": machine(), "runs": runs}


def summary(row: dict) -> str:
    """Return a row in one line: our time and every peer's, with the ratio."""
    ours = row["ours_median_ms"]
    found = [f"{row['title']}: {OURS} {ours:.3g} ms"]
    for peer in row["peers"]:
        if "median_ms" in peer:
            ratio = peer["median_ms"] / ours
            found.append(f"{peer['name']} {peer['median_ms']:.3g} ms = {ratio:.1f}x ({peer['agreement']})")
        else:
            found.append(f"{peer['name']} {peer['status']}")
    return "; ".join(found)


def collect(parts: list[dict], args: argparse.Namespace) -> dict:
    """Join what the processes measured into what is written."""
    return {
        "format": 1,
        "machine": parts[0]["machine"],
        "packages": {DISTRIBUTIONS[package]: version(package) for package in DISTRIBUTIONS},
        "settings": {"repeats": args.repeats, "budget_s": args.budget, "seed": args.seed, "size": args.size},
        "runs": [run for part in parts for run in part["runs"]],
    }


def disagreements(results: dict) -> list[str]:
    """Return the peers whose results were not ours, with the reason."""
    return [
        f"{row['title']}, {peer['name']}: {peer['agreement']}"
        for run in results["runs"]
        for row in run["rows"]
        for peer in row["peers"]
        if peer["status"] == "disagrees"
    ]


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers of threads are at least 1")
    return counts


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; choose from {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    raise SystemExit(main())
