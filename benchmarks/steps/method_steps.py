"""Time the step of every task and method at its published size, by running the program itself.

    python -m benchmarks.steps.method_steps --out benchmarks/results/method-steps-cpu.json
    python -m benchmarks.steps.method_steps --tasks fine-tuning,segmentation --methods point-mae,point-m2ae --batches 8
    python -m benchmarks.steps.method_steps --device cuda --batches 128,512 --clouds 4096 --out benchmarks/results/method-steps-gpu.json

Each case (task, method, precision, batch) is a process of its own that runs `main.py` on the built-in set for two epochs: what the second
one took, with drawing, choosing of points, augmentation, guidance and logging, gives samples a second, and the process the peak of its
memory. After that the same process takes single steps, eager and with a wait at each mark, for the share of each phase and the time of a
processor, which other programs on the machine disturb less than the clock on the wall. It also counts the operations of the matrix
products of a step in its plain form, guidance included; utilisation is that number against the rate of a large matrix product on the same
machine in the same precision. No weights are downloaded: teachers and image encoders have random ones, which cost the same; classifiers and
segmenters are trained from scratch. The linear SVM is left out. On a CPU, set OMP_NUM_THREADS.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import main as program
from benchmarks.steps.cases import FEWEST_CLOUDS, METHODS, SIZES, TASKS, open_case, watch, write_recipe
from benchmarks.steps.phases import Clock, matrix_rate
from datasets.batches import Batch
from tools.launch import open_run
from tools.train import Trainer
from utils.config.cli import parse_args
from utils.device import AUTOCAST_DTYPES, choose_device
from utils.files import write_atomic
from utils.provenance import ROOT, git_revision, provenance

PHASES = ("augmentation", "grouping", "guidance", "embedding", "blocks", "rest of forward", "backward", "optimizer")
STEPS_BY_PHASE = 3
MODULES = ("benchmarks.steps.method_steps", "benchmarks.method_steps")  # this script, here and in older checkouts
COUNTED_CLOUDS = 4


def main(arguments: list[str] | None = None) -> None:
    """Measure all cases, here and in another checkout, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="pre-training", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="16")
    parser.add_argument("--clouds", type=int, default=64, help="of an epoch, about: whole batches of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--size", choices=SIZES, default="published", help="debug: of cfgs/debug, to see that everything runs"
    )
    parser.add_argument("--flags", default="", help="more flags of main.py, in one string")
    parser.add_argument(
        "--against", type=Path, help="another checkout with this script: each case is run there too, before it is here"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds that a case may take")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.case:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            found = measure(**json.loads(args.case))
        print(json.dumps(found))
        return
    for flag, given, known in (("tasks", args.tasks, TASKS), ("methods", args.methods, METHODS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"--{flag}: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(known)}")
    trees = {**({"other": args.against.resolve()} if args.against else {}), "this": ROOT}
    report = {"about": provenance(), "size": args.size, "clouds": args.clouds, "flags": args.flags, "rows": []}
    axes = (args.tasks, args.methods, args.precisions, args.batches)
    for task, method, precision, batch in product(*(axis.split(",") for axis in axes)):
        row = {"task": task, "method": method, "precision": precision, "batch": int(batch)}
        how = {"clouds": args.clouds, "device": args.device, "size": args.size, "flags": args.flags.split()}
        for tree, root in trees.items():
            report["rows"].append(row | {"tree": tree} | alone(row | how, args.limit, root))
            print(describe(report["rows"][-1]), flush=True)
        if args.out:  # after each case: what was measured stays when time runs out
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.out, lambda file: file.write((json.dumps(report, indent=1) + "\n").encode()))


def alone(case: dict, limit: float, root: Path = ROOT) -> dict:
    """Measure a case in a process of its own, in a checkout; of one that fails, say why."""
    module = next(name for name in MODULES if (root / f"{name.replace('.', '/')}.py").exists() or name == MODULES[-1])
    command = [sys.executable, "-m", module, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=root)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def describe(row: dict) -> str:
    """Return a row of the report as a line of text."""
    where = "other checkout: " if row.get("tree") == "other" else ""
    name = f"{where}{row['task']}, {row['method']}, {row['precision']}, batch {row['batch']}"
    if "error" in row:
        return f"{name}: {row['error']}"
    total = sum(row["phase_ms"].values())
    shares = ", ".join(f"{phase} {value / total:.0%}" for phase, value in row["phase_ms"].items())
    return (
        f"{name}: {row['samples_per_second']:.1f} samples/s, {row['step_ms']:.1f} ms, {row['memory_mb']} MB, "
        f"{row['processor_ms']:.0f} ms of a processor, "
        f"{row['utilisation']:.0%} of the matrix rate; {shares}"
    )


def measure(
    *,
    method: str,
    precision: str,
    batch: int,
    clouds: int,
    device: str,
    flags: list[str],
    size: str = "published",
    task: str = "pre-training",
) -> dict:
    """Run the program on a case, then single steps of it; returns what a row of the report holds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        clouds = max(clouds, batch, FEWEST_CLOUDS)
        steps = clouds // batch
        write_recipe(method, batch, clouds, size, task)
        argv = ["--config", "recipe.yaml", "--exp_name", "case", "--precision", precision, "--device", device]
        argv += [*TASKS[task].flags, *flags]
        epoch = run_program(argv)
        phases, processor_ms, gflop = take_apart(argv, task)
    step_ms = 1000 * epoch["seconds"] / steps
    rate = matrix_rate(torch.device(device), AUTOCAST_DTYPES[precision] or torch.float32)
    return {
        "revision": git_revision(),
        "samples_per_second": round(1000 * batch / step_ms, 2),
        "step_ms": round(step_ms, 2),
        "processor_ms": round(processor_ms, 1),
        "memory_mb": round(epoch["memory_mb"]),
        "loss": epoch["loss"],
        "gflop": round(gflop, 1),
        "matrix_gflops": round(rate, 1),
        "utilisation": round(1000 * gflop / step_ms / rate, 4),
        "phase_ms": {name: round(value, 2) for name, value in phases.items()},
    }


def run_program(argv: list[str]) -> dict:
    """Run `main.py` and return what its metrics say of the last epoch.

    Raises:
        SystemExit: it did not succeed.
    """
    status = program.main(argv)
    if status:
        raise SystemExit(f"main.py {' '.join(argv)} ended with status {status}")
    rows = map(json.loads, next(Path("experiments").rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["kind"] == "epoch"][-1]


def take_apart(argv: list[str], task: str) -> tuple[dict[str, float], float, float]:
    """Take single eager steps of the same run; returns median milliseconds by phase and of this process, and GFLOP of a step."""
    args = parse_args([*argv, "--overwrite"])
    run = open_run(args, choose_device(args.device))
    case = open_case(run, task)
    trainer = case.trainer
    batches, optimizer = trainer.batches, trainer.state.optimizer
    few = next(run.batches(batches.cloud_set, COUNTED_CLOUDS).epoch(0))
    gflop = count_operations(trainer, few) / COUNTED_CLOUDS
    optimizer.zero_grad(set_to_none=True)
    clock = Clock(PHASES, run.device)
    watch(case, clock)
    found, processor = [], []
    for number in range(1 + STEPS_BY_PHASE):
        drawn, began = next(batches.epoch(number)), time.process_time()
        clock.start()
        loss = forward(trainer, drawn, clock)
        clock.to("backward")
        loss.backward()
        clock.to("optimizer")
        trainer.update()
        trainer.task.after_update()
        clock.leave()
        found.append(clock.spent), processor.append(1000 * (time.process_time() - began))
    phases = {phase: statistics.median(spent[phase] for spent in found[1:]) for phase in PHASES}
    return phases, statistics.median(processor[1:]), gflop * run.config.total_bs


def forward(trainer: Trainer, batch: Batch, clock: Clock) -> torch.Tensor:
    """Return the loss of a batch, as the loop computes it."""
    task = trainer.task
    with trainer.autocast():
        inputs = task.complete(batch, 0, task.prepare(batch, 0))
        clock.to("rest of forward")
        return task.compute(trainer.wrapped, inputs)["loss"]


def count_operations(trainer: Trainer, batch: Batch) -> float:
    """Return the GFLOP of the matrix products of a step, in its plain form: fused kernels would not be counted."""
    silent = Clock(PHASES, torch.device("cpu"))
    silent.start()
    plain = patch("torch.compiler.is_compiling", lambda: True), sdpa_kernel(SDPBackend.MATH)
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        forward(trainer, batch, silent).backward()
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
