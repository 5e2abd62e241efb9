"""Seconds and memory that a detector takes for one scene of published size, on the CPU.

    python -m benchmarks.steps.scenes --out benchmarks/results/scenes-cpu.json

One built-in scene of 50,000 points, of which 40,000 are drawn; random weights. Each value is the median of the rounds. Memory is what the
process takes at most, the program and its libraries included; each part is measured in a process of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from datasets.scenes import sample, targets, whole
from datasets.synthetic.scenes import Style, draw_scene
from models import build_model
from utils.files import write_atomic
from utils.provenance import provenance

PARTS = ("import", "scene", "group", "forward", "step", "pre-training step")


def main(arguments: list[str] | None = None) -> None:
    """Measure all parts, each in a process of its own, and write the result; with `--part`, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.part:
        print(json.dumps(measure(args.part, args.rounds)))
        return
    found = {}
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.steps.scenes", "--part", part, "--rounds", str(args.rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[part] = json.loads(done.stdout.splitlines()[-1])
        print(f"{part:>18}: {found[part]['seconds']:.2f} s, {found[part]['memory_mb']:.0f} MB")
    if args.out:
        text = json.dumps({"results": found, "threads": torch.get_num_threads(), "provenance": provenance()}, indent=1)
        write_atomic(args.out, lambda file: file.write(f"{text}\n".encode()))


def measure(part: str, rounds: int) -> dict[str, float]:
    """Return the seconds of a processor that a part takes, and the most memory of this process in megabytes."""
    torch.manual_seed(0)
    style = Style(points=50_000, least_objects=5, most_objects=12, noise=0.005)
    room = draw_scene(0, "train", 0, style)
    scene = sample(whole(room["points"], room["boxes"][: room["box_counts"]]), 40_000, np.random.RandomState(0))
    points = torch.from_numpy(scene.points)[None]
    wanted = {key: torch.from_numpy(value)[None] for key, value in targets(scene).items()}
    name = "Point_M2AE_Scenes" if part == "pre-training step" else "3DETR_M"
    model = build_model({"NAME": name}).train("step" in part)
    groups = model.group(points)  # loads the kernels

    def run() -> None:
        if part == "scene":
            draw_scene(0, "train", 1, style)
        elif part == "group":
            model.group(points)
        elif part == "forward":
            with torch.inference_mode():
                model(points, groups=groups)
        elif part == "step":
            model.loss(model(points, groups=groups), wanted)["loss"].backward()
        elif part == "pre-training step":
            model(points, pyramid=groups, generator=torch.Generator().manual_seed(0))["loss"].backward()

    seconds = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        seconds.append(time.process_time() - begun)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds), "memory_mb": memory}


if __name__ == "__main__":
    main()
