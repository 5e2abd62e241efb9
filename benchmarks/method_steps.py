"""Time the pre-training step of every method at its published size, by running the program itself.

    python -m benchmarks.method_steps --out benchmarks/results/method-steps-cpu.json
    python -m benchmarks.method_steps --device cuda --batches 128,512 --clouds 4096 --out benchmarks/results/method-steps-gpu.json

Each case (method, precision, batch) is a process of its own that runs `main.py` on the built-in set for two epochs: what the second
one took, with drawing, augmentation, guidance and logging, gives samples a second, and the process the peak of its memory. After that the
same process takes single steps, eager and with a wait at each mark, for the share of each phase, and counts the operations of the matrix
products of a step in its plain form, guidance included. Utilisation is that number against the rate of a large matrix product on the
same machine in the same precision. No weights are downloaded: teachers and image encoders have random ones, which cost the same. The
linear SVM is left out. On a CPU, set OMP_NUM_THREADS.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import main as program
from benchmarks.phases import Clock, matrix_rate
from datasets import build_dataset
from datasets.batches import Batch
from models import build_model
from models.layers.embed import PatchEmbed
from models.layers.gated import GatedPatchEmbed
from models.layers.transformer import Block
from tools.context import RunContext, build_pretraining_model, choose_device
from tools.engine import AUTOCAST_DTYPES, StopRequest, autocast, update
from tools.guides import Guide, build_guide
from tools.launch import open_run
from tools.runner_pretrain import DISPLAY, pretraining_step
from tools.steps import Step
from tools.training import Training, open_state
from utils.checkpoint import write_atomic
from utils.parser import parse_args
from utils.provenance import ROOT, provenance
from utils.yaml_files import read_yaml

METHODS = ("point-mae", "point-m2ae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae")
TEACHERS = {"gm3d": "Point_MAE", "gm3d-point-m2ae": "Point_M2AE"}
PHASES = ("augmentation", "grouping", "guidance", "embedding", "blocks", "rest of forward", "backward", "optimizer")
STORED_POINTS = 8192  # of a cloud, as in ShapeNet-55; a step draws some of them
STEPS_BY_PHASE = 3
COUNTED_CLOUDS = 4
FEWEST_CLOUDS = 20  # one a class of the built-in set
SIZES = {"published": "pre-training", "debug": "debug"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="16")
    parser.add_argument("--clouds", type=int, default=64, help="of an epoch, about: whole batches of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--size", choices=SIZES, default="published", help="debug: of cfgs/debug, to see that everything runs"
    )
    parser.add_argument("--flags", default="", help="more flags of main.py, in one string")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a case may take")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.case:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            found = measure(**json.loads(args.case))
        print(json.dumps(found))
        return
    if unknown := set(args.methods.split(",")) - set(METHODS):
        parser.error(f"--methods: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(METHODS)}")
    report = {"about": provenance(), "size": args.size, "clouds": args.clouds, "flags": args.flags, "rows": []}
    for method, precision, batch in product(
        args.methods.split(","), args.precisions.split(","), args.batches.split(",")
    ):
        row = {"method": method, "precision": precision, "batch": int(batch)}
        how = {"clouds": args.clouds, "device": args.device, "size": args.size, "flags": args.flags.split()}
        report["rows"].append(row | alone(row | how, args.limit))
        print(describe(report["rows"][-1]), flush=True)
        if args.out:  # after each case: what was measured stays when time runs out
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.out, lambda file: file.write((json.dumps(report, indent=1) + "\n").encode()))


def alone(case: dict, limit: float) -> dict:
    """Measure a case in a process of its own; of one that fails, say why."""
    command = [sys.executable, "-m", "benchmarks.method_steps", "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def describe(row: dict) -> str:
    """Return a row of the report as a line of text."""
    name = f"{row['method']}, {row['precision']}, batch {row['batch']}"
    if "error" in row:
        return f"{name}: {row['error']}"
    total = sum(row["phase_ms"].values())
    shares = ", ".join(f"{phase} {value / total:.0%}" for phase, value in row["phase_ms"].items())
    return (
        f"{name}: {row['samples_per_second']:.1f} samples/s, {row['step_ms']:.1f} ms, {row['memory_mb']} MB, "
        f"{row['utilisation']:.0%} of the matrix rate; {shares}"
    )


def measure(
    *, method: str, precision: str, batch: int, clouds: int, device: str, flags: list[str], size: str = "published"
) -> dict:
    """Run the program on a case, then single steps of it; returns what a row of the report holds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        clouds = max(clouds, batch, FEWEST_CLOUDS)
        steps = clouds // batch
        write_recipe(method, batch, clouds, size)
        argv = ["--config", "recipe.yaml", "--exp_name", "case", "--precision", precision, "--device", device, *flags]
        epoch = run_program(argv)
        phases, gflop = take_apart(argv, batch)
    step_ms = 1000 * epoch["seconds"] / steps
    rate = matrix_rate(torch.device(device), AUTOCAST_DTYPES[precision] or torch.float32)
    return {
        "samples_per_second": round(1000 * batch / step_ms, 2),
        "step_ms": round(step_ms, 2),
        "memory_mb": round(epoch["memory_mb"]),
        "loss": epoch["loss"],
        "gflop": round(gflop, 1),
        "matrix_gflops": round(rate, 1),
        "utilisation": round(1000 * gflop / step_ms / rate, 4),
        "phase_ms": {name: round(value, 2) for name, value in phases.items()},
    }


def write_recipe(method: str, batch: int, clouds: int, size: str = "published") -> None:
    """Write `recipe.yaml`, one of `size` on the built-in set for two epochs, and the weights of a frozen teacher."""
    recipe = read_yaml(ROOT / "cfgs" / SIZES[size] / f"{method}.yaml")
    drawn = recipe["dataset"]["train"]["others"]["npoints"]
    data = {"NAME": "Synthetic", "N_POINTS": STORED_POINTS, "clouds": clouds, "npoints": drawn}
    recipe |= {"dataset": {"train": data}, "total_bs": batch, "max_epoch": 2, "max_epoch_inclusive": False}
    model = recipe["model"]
    if size == "published" and method == "i2p-mae":
        model["teacher"] = {"weights": "random"}
    elif size == "published" and method == "inter-mae":
        model["image_branch"] |= {"weights": "none", "views": 1}
    elif method in TEACHERS and model["guidance"]["mode"] == "feature":
        same = {key: value for key, value in model.items() if key not in ("NAME", "guidance")}
        torch.save({"base_model": build_model({"NAME": TEACHERS[method], **same}).state_dict()}, "teacher.pth")
        model["guidance"]["teacher"] = "teacher.pth"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


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


def take_apart(argv: list[str], batch: int) -> tuple[dict[str, float], float]:
    """Take single eager steps of the same run; returns median milliseconds by phase, and GFLOP of a step."""
    args = parse_args([*argv, "--overwrite"])
    run = open_run(args, choose_device(args.device))
    with run.log:
        model = build_pretraining_model(run).train()
        clouds = build_dataset(run.config.dataset.train)
        guide = build_guide(run, model, clouds)
        state = open_state(run, model, ema=guide.ema)
    training = Training(run, state, run.batches(clouds, batch), None, StopRequest(), DISPLAY)
    step = pretraining_step(training, guide, 0)
    gflop = count_operations(run, step, next(run.batches(clouds, COUNTED_CLOUDS).epoch(0))) / COUNTED_CLOUDS
    state.optimizer.zero_grad(set_to_none=True)
    clock = Clock(PHASES, run.device)
    watch(model, guide, clock)
    found = []
    for number in range(1 + STEPS_BY_PHASE):
        seen = next(training.batches.epoch(number))
        clock.start()
        loss = forward(run, step, seen, clock)
        clock.to("backward")
        loss.backward()
        clock.to("optimizer")
        update(state.optimizer, clip=None, scaler=None, repeats=1)
        guide.after_update()
        clock.leave()
        found.append(clock.spent)
    return {phase: statistics.median(spent[phase] for spent in found[1:]) for phase in PHASES}, gflop * batch


def watch(model: nn.Module, guide: Guide, clock: Clock) -> None:
    """Tell a clock when a model groups, embeds and runs its blocks, and when its guide is asked."""
    clock.wrap(model, "group", "grouping")
    clock.wrap(guide, "prepare", "guidance")
    for module in model.modules():
        if isinstance(module, PatchEmbed | GatedPatchEmbed):
            clock.watch(module, "embedding")
        elif isinstance(module, Block):
            clock.watch(module, "blocks")


def forward(run: RunContext, step: Step, batch: Batch, clock: Clock) -> torch.Tensor:
    """Return the loss of a batch, as the loop computes it."""
    with autocast(run.device, run.config.precision):
        inputs = step.ready(batch, step.ahead(batch))
        step.seed(batch)
        clock.to("rest of forward")
        return step.compute(inputs)["loss"]


def count_operations(run: RunContext, step: Step, batch: Batch) -> float:
    """Return the GFLOP of the matrix products of a step, in its plain form: fused kernels would not be counted."""
    silent = Clock(PHASES, torch.device("cpu"))
    silent.start()
    plain = patch("torch.compiler.is_compiling", lambda: True), sdpa_kernel(SDPBackend.MATH)
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        forward(run, step, batch, silent).backward()
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
