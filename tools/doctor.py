"""Check an installation where it runs: `python -m tools.doctor [--device cuda]`.

Says what is installed and which kernels serve, and why not others; runs every op and a few training steps of every method
and compares them with the plain PyTorch reference on the same device. On a GPU it also compares a CUDA graph, the side
stream, bfloat16 with and without fused kernels, and writes down for training what agreed. One table; the status is 1 where
something disagrees.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from extensions.m2ae_ops import backend
from extensions.m2ae_ops.building import BuildError
from extensions.m2ae_ops.building.toolchain import find_compiler, find_cuda
from extensions.m2ae_ops.building.torch_files import torch_files
from tools.confirmed import GRAPH, SIDE_STREAM, confirm
from tools.self_test import RECIPES
from utils import IMPORT_ROOT, ROOT
from utils.device import choose_device
from utils.errors import run_command

SAME, CLOSE, LOW = 1e-4, 2e-3, 5e-2
"""Largest relative difference of an op, of losses in float32 after a few updates, and in bfloat16."""
OK, NOTE, WRONG = "ok", "note", "WRONG"
LIMIT = 300  # seconds that a process may take
COMMITTED = {"cpu": "ops-cpu.json", "cuda": "ops-gpu.json"}
CONFIRMED = "confirmed for training"
SIDE, BF16, FUSED = SIDE_STREAM, "bf16", "bf16, fused kernels"


@dataclass(frozen=True)
class Row:
    """A line of the table: what was checked, `OK`, `NOTE` or `WRONG`, and why."""

    what: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class Probe:
    """A process of `tools.self_test`: its arguments and what is added to its environment."""

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def main(arguments: list[str] | None = None) -> int:
    """Run all checks and print the table; returns 1 where something disagrees, else 0."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if unknown := set(args.methods) - set(methods()):
        parser.error(f"--methods: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(methods())}")
    return run_command(lambda: _run(args), debug=True)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="tools.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there, else cpu)")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=methods(), help="default: all")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    return parser


def methods() -> list[str]:
    """Return the methods that have a smallest recipe."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _run(args: argparse.Namespace) -> int:
    began, device = time.perf_counter(), choose_device(args.device)
    rows = []
    for row in _all_rows(device, args.methods):
        rows.append(row)
        print(f"{row.outcome:<6}{row.what}{': ' if row.detail else ''}{row.detail}", flush=True)
    wrong = [row.what for row in rows if row.outcome == WRONG]
    seconds = time.perf_counter() - began
    print(
        f"{len(rows)} checks in {seconds:.0f} s: "
        + (f"{len(wrong)} WRONG: {', '.join(wrong)}" if wrong else "all right")
    )
    if args.json:
        table = {"device": str(device), "seconds": round(seconds, 1), "rows": [vars(row) for row in rows]}
        args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


def _all_rows(device: torch.device, chosen: list[str]) -> Iterator[Row]:
    yield from installation(device)
    with tempfile.TemporaryDirectory() as folder:
        found = run_probes(probes(device, chosen), Path(folder), device)
    yield from comparisons(found, device)
    if device.type == "cuda" and set(chosen) == set(methods()):
        yield from confirmations(found, device)
    elif device.type == "cuda":
        yield Row(CONFIRMED, NOTE, "nothing is written down, because --methods leaves some out")
    yield from speed(found, device)


# ---- what is installed ---------------------------------------------------------------------------------------------------


def installation(device: torch.device) -> Iterator[Row]:
    """Say which versions, compilers and kernels are here."""
    yield Row("Python", OK, f"{platform.python_version()}, PyTorch {torch.__version__}, {_name(device)}")
    for module in ("triton", "hypothesis", "pytest"):
        there = importlib.util.find_spec(module) is not None
        why = {"triton": "fused patch embedding on a GPU, --compile"}.get(module, "tests")
        yield Row(
            module, OK if there else NOTE, importlib.metadata.version(module) if there else f"not installed ({why})"
        )
    try:
        compiler = find_compiler()
        yield Row("C++ compiler", OK, compiler.version)
    except BuildError as error:
        yield Row("C++ compiler", NOTE, str(error))
    if device.type == "cuda":
        try:
            toolkit = find_cuda(torch_files(Path(torch.__file__).parent))
            yield Row("CUDA toolkit", OK, f"{toolkit.version}, {toolkit.nvcc}")
        except BuildError as error:
            yield Row("CUDA toolkit", NOTE, str(error))
    for half in ("cpu", *(("cuda",) if device.type == "cuda" else ())):
        what = backend(half)
        yield Row(f"{half.upper()} kernels", OK if what.startswith("compiled") else NOTE, what)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


# ---- what is run ---------------------------------------------------------------------------------------------------------


def probes(device: torch.device, chosen: list[str]) -> dict[str, Probe]:
    """Return the processes to run, by name: the reference, the kernels, and on a GPU what else makes training faster."""
    every = ("--device", str(device), "--methods", ",".join(chosen))
    off, on = ("--cuda_graph", "off"), ("--cuda_graph", "on")
    plain = (("M2AE_OPS", "reference"),)
    found = {
        "reference": Probe((*every, "--flags", *off), plain),
        "kernels": Probe((*every, "--speed", "--flags", *off)),
    }
    if device.type == "cuda":
        half = ("--precision", "bf16", *off)
        found |= {
            GRAPH: Probe((*every, "--no_ops", "--flags", *on)),
            SIDE: Probe((*every, "--no_ops", "--side", "--flags", *off)),
            BF16: Probe((*every, "--no_ops", "--flags", *half), (("M2AE_FUSED", "off"),)),
            FUSED: Probe((*every, "--no_ops", "--flags", *half), (("M2AE_FUSED", "auto"),)),
        }
    return found


def run_probes(wanted: dict[str, Probe], folder: Path, device: torch.device) -> dict[str, dict | str]:
    """Run the processes, two at a time; returns what each of them found, or why it failed in one line."""
    threads = str(max((os.cpu_count() or 2) // 2, 1))

    def run(name: str, probe: Probe) -> dict | str:
        out = folder / f"{len(name)}-{abs(hash(name))}.pt"
        environment = {**os.environ, "OMP_NUM_THREADS": threads, **dict(probe.environment)}
        command = [sys.executable, "-m", f"{__package__}.self_test", str(out), *probe.arguments]
        try:
            done = subprocess.run(
                command,
                cwd=IMPORT_ROOT,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return f"took longer than {LIMIT} s"
        if done.returncode or not out.exists():
            return (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return torch.load(out, weights_only=True)

    with ThreadPoolExecutor(2) as pool:
        started = {name: pool.submit(run, name, probe) for name, probe in wanted.items()}
        return {name: future.result() for name, future in started.items()}


# ---- what is compared ----------------------------------------------------------------------------------------------------


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest relative difference of two lists of results; whole numbers that differ count as infinity."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if not other.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else float("inf"))
            continue
        apart = (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30)
        worst = max(worst, float("inf") if apart.isnan() else float(apart))
    return worst


def compare(what: str, found: dict | str, expected: dict | str, part: str, bound: float) -> Iterator[Row]:
    """Compare a part of what two processes found, name by name."""
    for side, result in (("", found), ("reference: ", expected)):
        if isinstance(result, str):
            yield Row(what, WRONG, f"{side}{result}")
            return
    for name, results in expected[part].items():
        if isinstance(found[part][name], str):  # why it was not run
            yield Row(f"{what}, {name}", NOTE, found[part][name])
            continue
        apart = difference(found[part][name], results)
        outcome = OK if apart <= bound else WRONG
        yield Row(
            f"{what}, {name}", outcome, f"differs by {apart:.1e}" + ("" if outcome == OK else f", more than {bound:g}")
        )


def comparisons(found: dict[str, dict | str], device: torch.device) -> Iterator[Row]:
    """Compare ops and training with the reference; on a GPU also what makes training faster."""
    yield from compare("op", found["kernels"], found["reference"], "ops", SAME)
    yield from compare("training", found["kernels"], found["reference"], "methods", CLOSE)
    if device.type == "cuda":
        for name, bound in ((GRAPH, CLOSE), (SIDE, CLOSE), (BF16, LOW), (FUSED, LOW)):
            yield from compare(name, found[name], found["kernels"], "methods", bound)


def confirmations(found: dict[str, dict | str], device: torch.device) -> Iterator[Row]:
    """Write down which accelerators agreed in all methods, so that training uses them by itself."""
    agreed = [
        name
        for name in (GRAPH, SIDE)
        if all(row.outcome != WRONG for row in compare(name, found[name], found["kernels"], "methods", CLOSE))
    ]
    try:
        confirm(agreed, device)
    except OSError as error:
        yield Row(CONFIRMED, NOTE, f"could not be written down: {error}")
        return
    yield Row(CONFIRMED, OK if len(agreed) == 2 else NOTE, ", ".join(agreed) or "nothing")


def speed(found: dict[str, dict | str], device: torch.device) -> Iterator[Row]:
    """Show times beside the committed ones; a slower machine is no error."""
    if isinstance(found["kernels"], str):
        return
    path, committed = ROOT / "benchmarks" / "results" / COMMITTED[device.type], {}
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
        for run in report["runs"]:  # the first one has a single thread and uniform clouds
            for row in run["rows"]:
                committed.setdefault(row["title"], row["ours_median_ms"])
    for title, (times,) in found["kernels"]["speed"].items():
        beside = f", {committed[title]:.2f} ms committed" if title in committed else ", no committed figure"
        yield Row(f"speed, {title}", OK, f"{times.median():.2f} ms{beside}")


if __name__ == "__main__":
    sys.exit(main())
