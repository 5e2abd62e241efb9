"""What a guided step of GeoMask3D costs, compared with a step of its base method: time and memory, at the published sizes.

    python -m benchmarks.steps.gm3d --batch 4 --steps 2 --out benchmarks/results/gm3d-step-cpu.json

A step is forward, backward and AdamW, with the grouping; a guided one also has the averaged student's pass, both passes of the frozen
teacher and the update of the average. Every case runs in a process of its own, so that memory peaks do not mix. Times are those of the
processor (user and system), which other processes on the machine disturb less than the clock; the least of the steps counts.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from models import build_model
from models.gm3d import Targets
from models.masking import guided_mask
from models.teachers import EmaTeacher, FrozenTeacher
from utils.device import peak_memory_mb
from utils.provenance import provenance

CASES = {
    "Point-MAE": ("Point_MAE", None),
    "GM3D on Point-MAE, usual mode": ("GM3D", "usual"),
    "GM3D on Point-MAE, feature mode": ("GM3D", "feature"),
    "Point-M2AE": ("Point_M2AE", None),
    "GM3D on Point-M2AE, usual mode": ("GM3D_Point_M2AE", "usual"),
    "GM3D on Point-M2AE, feature mode": ("GM3D_Point_M2AE", "feature"),
}
POINTS = {"Point_MAE": 1024, "GM3D": 1024, "Point_M2AE": 2048, "GM3D_Point_M2AE": 2048}


def main() -> None:
    """Measure all cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.batch, args.steps)))
        return
    results = {name: _alone(name, args) for name in CASES}
    for name, base in ((name, name.split(",")[0].removeprefix("GM3D on ")) for name in CASES):
        results[name]["times the base method"] = round(results[name]["seconds"] / results[base]["seconds"], 2)
    report = {"batch": args.batch, "threads": torch.get_num_threads(), "cases": results, "versions": provenance()}
    text = json.dumps(report, indent=1) + "\n"
    print(text, end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


def _alone(name: str, args: argparse.Namespace) -> dict:
    flags = ["--case", name, "--batch", str(args.batch), "--steps", str(args.steps)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps.gm3d", *flags], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: str, batch: int, steps: int) -> dict:
    """Return the processor seconds of a step and the peak memory in MB of this process."""
    name, mode = CASES[case]
    model = build_model({"NAME": name, **({"guidance": {"mode": mode}} if mode else {})}).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    points = torch.randn(batch, POINTS[name], 3, generator=torch.Generator().manual_seed(0))
    guide = _Guide(model, mode) if mode else None

    def step() -> None:
        loss = model(points)["loss"] if guide is None else guide.loss(points)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if guide is not None:
            guide.ema.update(model, 0.999)

    step()
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return {"seconds": round(min(seconds), 3), "peak memory, MB": round(peak_memory_mb(points.device))}


class _Guide:
    """The work of `tools.guides.gm3d` without a run around it."""

    def __init__(self, model: torch.nn.Module, mode: str):
        self.model, self.ema = model, EmaTeacher(model)
        self.teacher = FrozenTeacher(build_model(model.config.base())) if mode == "feature" else None

    def loss(self, points: torch.Tensor) -> torch.Tensor:
        model = self.model
        pyramid, count = model.group(points), model.masked_count
        with torch.no_grad():
            scores = self.ema.module.complexity(pyramid)
        complete = None if self.teacher is None else self.teacher.complete(pyramid)
        targets = Targets((1.0, 1.0), count // 2, scores, self.teacher, complete)
        return model(points, guided_mask(scores, count, count // 2), pyramid=pyramid, targets=targets)["loss"]


if __name__ == "__main__":
    main()
