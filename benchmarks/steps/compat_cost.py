"""Time what `m2ae_ops.compat run` costs: start-up of a process, and a step of a small model, with and without the mapping.

    python -m benchmarks.steps.compat_cost --out benchmarks/results/compat-cost-cpu.json

Every run is a process of its own on one thread; the forms take turns, and a first round does not count. Start-up is the processor time
from the start of the interpreter until PyTorch and the ops are there and the script goes on. The step (forward, backward, AdamW of a
transformer, 8 clouds of 64 tokens) is so small that the functions between the script and PyTorch can be seen; its figure is the median
of a run. Last, the start-up of a process below `run` that needs neither.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.steps.startup import ROOT, write

RUN = ["-m", "m2ae_ops.compat", "run"]
BELOW = "import json, time; print(json.dumps({'startup_s': time.process_time()}))"
FORMS = {
    "no layer": [],
    "run": RUN,
    "run --device cpu": [*RUN, "--device", "cpu"],
    "run --device cpu --shims": [*RUN, "--device", "cpu", "--shims"],
}
EMPTY = {
    "empty process, no layer": [sys.executable, "-c", BELOW],
    "empty process below run": [sys.executable, *RUN, "python", "-c", BELOW],
}
SCRIPT = """
import json, statistics, sys, time
import torch
import m2ae_ops
started = time.process_time()
torch.manual_seed(0)
there = (lambda value: value.cuda()) if torch.cuda.is_available() else (lambda value: value)
layer = torch.nn.TransformerEncoderLayer(96, 4, 192, dropout=0.0, batch_first=True)
model = there(torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
optimizer = torch.optim.AdamW(model.parameters())
times = []
for _ in range(int(sys.argv[1])):
    begun = time.process_time()
    tokens = there(torch.rand(8, 64, 96)) + torch.zeros(8, 1, 1, device=next(model.parameters()).device)
    loss = model(tokens).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(1000 * (time.process_time() - begun))
print(json.dumps({"startup_s": started, "step_ms": statistics.median(times), "loss": loss.item()}))
"""


def start_once(command: Sequence[str], folder: Path) -> dict:
    """Run a command in a folder and return the facts that it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "extensions"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(runs: int, steps: int) -> list[dict]:
    """Run all forms in turn; returns a row a form: every value and the medians.

    Raises:
        SystemExit: a run failed, or its last loss is another than without the layer.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "step.py").write_text(SCRIPT, encoding="utf-8")
        commands = {form: [sys.executable, *options, "step.py", str(steps)] for form, options in FORMS.items()} | EMPTY
        rounds = [{form: start_once(command, folder) for form, command in commands.items()} for _ in range(runs + 1)]
    rows = []
    for form in commands:
        found = [one[form] for one in rounds[1:]]
        losses = {run["loss"] for run in found if "loss" in run}
        if losses and losses != {rounds[0]["no layer"]["loss"]}:
            raise SystemExit(f"{form}: last loss {losses}, without the layer {rounds[0]['no layer']['loss']}")
        values = {unit: [round(run[unit], 4) for run in found] for unit in ("startup_s", "step_ms") if unit in found[0]}
        rows.append(
            {"form": form} | values | {f"median_{unit}": statistics.median(several) for unit, several in values.items()}
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Time the published calls and write the result."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.steps.compat_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="of every form, after one that does not count")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args(arguments)
    if min(args.runs, args.steps) < 1:
        parser.error("--runs and --steps must be at least 1")
    rows = measure(args.runs, args.steps)
    for row in rows:
        step = f", a step {row['median_step_ms']:.2f} ms" if "step_ms" in row else ""
        print(f"{row['form']}: start-up {row['median_startup_s']:.2f} s{step}")
    if args.out:
        write(args.out, rows, 1, ["--out", str(args.out)], name=Path(__file__).stem)
    return 0


if __name__ == "__main__":
    sys.exit(main())
