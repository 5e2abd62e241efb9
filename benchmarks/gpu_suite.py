"""Say whether a part of `gpu_suite.sh` can run, and print the table of what it found with its verdict.

    python -m benchmarks.gpu_suite --needs check --device cuda
    python -m benchmarks.gpu_suite FOLDER --part check

The table is written as summary-PART.json too. The status is 1 where a stage failed, did not run, or ran out of time.
"""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import torch

from benchmarks import gpu_embed
from extensions.m2ae_ops.building import BuildError
from extensions.m2ae_ops.building.toolchain import check_headers, find_cuda
from extensions.m2ae_ops.building.torch_files import torch_files
from utils.files import write_atomic

CLOUDS, EPOCHS = 41_952, 300  # ShapeNet-55 and the published number of epochs
MODULES = ("pytest", "hypothesis", "yaml", "numpy", "scipy", "sklearn")
TIMED_OUT = (124, 137)  # statuses of a stage that `timeout` has ended, or killed where it did not stop


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_suite", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--part", choices=("check", "speed"), default="check")
    parser.add_argument("--needs", choices=("check", "speed"), help="say what is missing for a part, with status 1")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(arguments)
    if args.needs:
        lacking = missing(args.device)
        for line in lacking:
            print(f"gpu_suite: {line}", file=sys.stderr)
        return 1 if lacking else 0
    summary = summarise(args.folder, args.part)
    text = json.dumps(summary, indent=1) + "\n"
    write_atomic(args.folder / f"summary-{args.part}.json", lambda file: file.write(text.encode()))
    print(table(summary), end="")
    return 1 if summary["failures"] else 0


def missing(device: str) -> list[str]:
    """Return what the suite cannot run without on this machine, each with a remedy."""
    lacking = [
        f"Python lacks {name}; install it, or fill .carry/site from benchmarks/gpu_wheels.txt"
        for name in MODULES
        if importlib.util.find_spec(name) is None
    ]
    if device == "cpu":
        return lacking
    if not torch.cuda.is_available():
        lacking.append("PyTorch finds no CUDA device; run it on a machine with a GPU, or with --cpu")
    if importlib.util.find_spec("triton") is None:
        lacking.append(
            "Python lacks triton, which comes with PyTorch's CUDA wheels; the fused forms would not be tested"
        )
    try:
        files = torch_files(Path(torch.__file__).parent)
        check_headers(files, find_cuda(files))
    except BuildError as error:
        lacking.append(f"no CUDA kernels could be compiled: {error}")
    return lacking


def summarise(folder: Path, part: str) -> dict:
    """Return stages, ops against their targets, steps with the time of a whole pre-training, and what failed."""
    lines = (folder / f"stages-{part}.tsv").read_text(encoding="utf-8").splitlines()
    keys = ("stage", "status", "seconds", "limit")
    stages = [
        dict(zip(keys, (name, *map(int, numbers)), strict=True))
        for name, *numbers in (line.split("\t") for line in lines)
    ]
    tests = {
        stage["stage"]: _last_line(folder / f"{stage['stage']}.log")
        for stage in stages
        if stage["stage"].startswith("tests-")
    }
    summary = {"part": part, "stages": stages, "tests": tests, "ops": [], "embeddings": [], "steps": []}
    if part == "speed":
        _read_speed(folder, summary)
    summary["failures"] = failures(summary)
    return summary


def failures(summary: dict) -> list[str]:
    """Return what keeps the verdict from being a pass, in words."""
    found = []
    for stage in summary["stages"]:
        if stage["status"]:
            why = (
                f"took longer than {stage['limit']} s" if stage["status"] in TIMED_OUT else f"status {stage['status']}"
            )
            found.append(f"{stage['stage']}: {why}")
    for name, last in summary["tests"].items():
        if not re.search(r"\b[1-9]\d* passed", last):
            found.append(f"{name}: no test has run ({last})")
    found += [f"{step['method']}: {step['error']}" for step in summary["steps"] if "error" in step]
    return found if summary["stages"] else ["no stage has run"]


def _read_speed(folder: Path, summary: dict) -> None:
    for path in sorted(folder.glob("ops-*.json")):
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        rows = [row for run in runs for row in run["rows"]]
        summary["ops"] += [
            {"op": row["title"], "ours_ms": row["ours_median_ms"]}
            | {key: target[key] for key in ("against", "value", "unit", "must", "aim", "met")}
            for row in rows
            for target in row["targets"]
        ]
    for path in sorted(folder.glob("embed-*.json")):
        summary["embeddings"] += [gpu_embed.line(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    for path in sorted(folder.glob("method-steps-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        summary["steps"] += [_step(row, published=report["size"] == "published") for row in report["rows"]]


def _step(row: dict, *, published: bool) -> dict:
    """Return what the table shows of a case; at published sizes also what 300 epochs of ShapeNet-55 would take without SVM."""
    keys = (
        "task",
        "method",
        "precision",
        "batch",
        "samples_per_second",
        "step_ms",
        "memory_mb",
        "utilisation",
        "error",
    )
    found = {key: row[key] for key in keys if key in row}
    if published and row["task"] == "pre-training" and "samples_per_second" in row:
        found["minutes_of_300_epochs"] = round(EPOCHS * CLOUDS / row["samples_per_second"] / 60, 1)
    return found


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "nothing"


def table(summary: dict) -> str:
    """Return the summary as text."""
    lines = [f"{s['stage']}: status {s['status']}, {s['seconds']} of {s['limit']} s" for s in summary["stages"]]
    lines += [f"{name}: {last}" for name, last in summary["tests"].items()]
    for op in summary["ops"]:
        value = "not measured" if op["value"] is None else f"{op['value']:.1f}{op['unit']}"
        lines.append(
            f"{op['op']}: {op['ours_ms']:.3g} ms; against {op['against']} {value}, must {op['must']:g}, aim {op['aim']:g}: {op['met']}"
        )
    lines += [f"patch embedding, {row}" for row in summary["embeddings"]]
    for step in summary["steps"]:
        name = f"{step['task']}, {step['method']}, {step['precision']}, batch {step['batch']}"
        if "error" in step:
            lines.append(f"{name}: {step['error']}")
            continue
        whole = f", {EPOCHS} epochs in {step['minutes_of_300_epochs']} min" if "minutes_of_300_epochs" in step else ""
        lines.append(
            f"{name}: {step['samples_per_second']:.0f} samples/s, {step['step_ms']:.1f} ms, {step['memory_mb']} MB, "
            f"{step['utilisation']:.0%} of the matrix rate{whole}"
        )
    failed = summary["failures"]
    verdict = f"FAILED: {'; '.join(failed)}" if failed else "PASSED"
    return "\n".join([*lines, f"{summary['part']}: {verdict}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
