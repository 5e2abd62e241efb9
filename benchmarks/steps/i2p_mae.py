"""Cost of an I2P-MAE pre-training step, with sparse and with dense reading of the image features.

    python -m benchmarks.steps.i2p_mae --batch 4 --rounds 3 --out benchmarks/results/i2p-mae-step-cpu.json

The published size: CLIP ViT-B/16 with random weights (what it costs does not depend on them) on three images of 224 pixels, 2,048
points. Dense is the published formulation: maps are enlarged to 224 x 224 and pixels picked. Both sides must agree in the loss. Each
side and round is a process of its own, in turns, so that its peak memory is its own; time is CPU time on one thread, which other
programs disturb little.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets import build_dataset
from models import build_model, i2p_mae
from models.images.projection import lift
from models.images.teacher import build_teacher
from utils.device import peak_memory_mb
from utils.provenance import provenance

SIDES = ("sparse", "dense")
PARTS = ("group", "see", "lift", "forward", "backward")
POINTS = 2048
FEWEST_CLOUDS = 20  # one a class of the built-in set


def dense_lift(maps: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Read maps as `models.images.projection.lift` does, from maps enlarged to size x size."""
    enlarged = F.interpolate(maps.float(), size=(size, size), mode="bicubic", align_corners=False).flatten(2)
    place = (pixels[..., 0] * size + pixels[..., 1]).unsqueeze(1).expand(-1, maps.shape[1], -1)
    return enlarged.gather(2, place).transpose(1, 2)


def run_side(side: str, batch: int, steps: int, teacher_keys: dict, model_keys: dict) -> dict:
    """Take some training steps and return CPU seconds of each part of each step, and peak memory in MB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model({"NAME": "I2P_MAE", "teacher": {"weights": "random", **teacher_keys}, **model_keys}).train()
    keys = model.config.teacher
    teacher = build_teacher(keys)
    clouds = build_dataset({"NAME": "Synthetic", "clouds": max(batch, FEWEST_CLOUDS), "N_POINTS": POINTS})
    points = torch.from_numpy(clouds.points[:batch].copy())
    i2p_mae.lift = lift if side == "sparse" else dense_lift
    found = []
    for _ in range(steps):
        times = [time.process_time()]
        pyramid = model.group(points)
        times.append(time.process_time())
        views = i2p_mae.encode_views(points, teacher, size=keys.image_size, depth=keys.depth)
        times.append(time.process_time())
        guidance = i2p_mae.guide(points, pyramid, views, size=keys.image_size, scale=model.decoded_scale)
        masked = model.mask_by_saliency(guidance.saliency, generator=torch.Generator().manual_seed(0))
        times.append(time.process_time())
        out = model(points, masked, pyramid=pyramid, targets=guidance.targets)
        times.append(time.process_time())
        out["loss"].backward()
        times.append(time.process_time())
        found.append(dict(zip(PARTS, (b - a for a, b in pairwise(times)), strict=True)))
    loss = float(out["loss"].detach())
    return {"side": side, "loss": loss, "steps": found, "peak_mb": peak_memory_mb(torch.device("cpu"))}


def summarise(rounds: list[dict], batch: int) -> dict:
    """Return median CPU seconds of each part, samples a CPU second and peak memory of each side.

    Raises:
        SystemExit: the sides do not agree.
    """
    sides = {}
    for side in SIDES:
        own = [found for found in rounds if found["side"] == side]
        steps = [step for found in own for step in found["steps"]]
        parts = {part: statistics.median(step[part] for step in steps) for part in PARTS}
        total = statistics.median(sum(step.values()) for step in steps)
        sides[side] = {
            "samples_per_cpu_second": round(batch / total, 3),
            "cpu_seconds_a_step": round(total, 3),
            "parts": {part: round(value, 4) for part, value in parts.items()},
            "peak_mb": round(statistics.median(found["peak_mb"] for found in own)),
            "loss": own[0]["loss"],
        }
    if abs(sides["sparse"]["loss"] - sides["dense"]["loss"]) > 1e-4 * abs(sides["dense"]["loss"]):
        raise SystemExit(f"the sides disagree: {sides['sparse']['loss']} and {sides['dense']['loss']}")
    return sides


def table(sides: dict, batch: int) -> str:
    """Return the sides as a Markdown table."""
    lines = [f"Batch {batch}, CPU seconds on one thread, medians.", "", f"| | {' | '.join(SIDES)} |", "|---|---|---|"]
    rows = {
        "samples a CPU second": "samples_per_cpu_second",
        "seconds a step": "cpu_seconds_a_step",
        "peak memory, MB": "peak_mb",
    }
    lines += [f"| {name} | {' | '.join(str(sides[side][key]) for side in SIDES)} |" for name, key in rows.items()]
    lines += [
        f"| seconds: {part} | {' | '.join(str(sides[side]['parts'][part]) for side in SIDES)} |" for part in PARTS
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure both sides in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps a round; the first is not counted")
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process and print it as JSON")
    parser.add_argument("--teacher", type=json.loads, default={}, help="keys of model.teacher, as JSON")
    parser.add_argument("--model", type=json.loads, default={}, help="further keys of the model, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.side:
        found = run_side(args.side, args.batch, args.steps, args.teacher, args.model)
        print(json.dumps({**found, "steps": found["steps"][1:]}))
        return
    own = [sys.executable, "-m", "benchmarks.steps.i2p_mae", "--batch", str(args.batch), "--steps", str(args.steps)]
    own += ["--teacher", json.dumps(args.teacher), "--model", json.dumps(args.model), "--side"]
    rounds = [
        json.loads(subprocess.run([*own, side], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(args.rounds)
        for side in SIDES
    ]
    sides = summarise(rounds, args.batch)
    print(table(sides, args.batch), end="")
    if args.out:
        about = provenance() | {"Command": " ".join(["python -m benchmarks.steps.i2p_mae", *sys.argv[1:]])}
        args.out.write_text(
            json.dumps({"provenance": about, "batch": args.batch, "sides": sides, "rounds": rounds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
