"""Time the ops on the CPU against plain PyTorch forms, both sides interleaved in one run; medians.

python benchmarks/ops.py --threads 1 --out benchmarks/results/ops-cpu-1.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from extensions import chamfer_distance, fps, knn, three_nn
from extensions.m2ae_ops import backend
from extensions.m2ae_ops.reference.sampling import fps as reference_fps


def cases() -> dict[str, tuple[Callable, Callable, str]]:
    """Return name -> (ours, the plain form, what the plain form is)."""
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(32, 2048, 3, generator=generator) * 2 - 1
    centers = clouds[:, :512].contiguous()
    a = torch.rand(2048, 32, 3, generator=generator, requires_grad=True)
    b = torch.rand(2048, 32, 3, generator=generator, requires_grad=True)

    def chamfer_ours():
        d1, d2, _, _ = chamfer_distance(a, b)
        torch.autograd.grad(d1.mean() + d2.mean(), (a, b))

    def chamfer_plain():
        distance = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)
        torch.autograd.grad(distance.amin(2).mean() + distance.amin(1).mean(), (a, b))

    return {
        "FPS, 32 x 2048 -> 512": (
            lambda: fps(clouds, 512),
            lambda: reference_fps(clouds, 512, False, "lowest"),
            "loop over samples, vectorised over clouds",
        ),
        "kNN, 32 x 512 x 2048, k 16": (
            lambda: knn(centers, clouds, 16),
            lambda: torch.cdist(centers, clouds).topk(16, largest=False),
            "cdist + topk",
        ),
        "three-NN, 32 x 2048 x 512": (
            lambda: three_nn(clouds, centers),
            lambda: torch.cdist(clouds, centers).topk(3, largest=False),
            "cdist + topk",
        ),
        "Chamfer, 2048 patches of 32 points, forward + backward": (
            chamfer_ours,
            chamfer_plain,
            "all pairs by broadcasting",
        ),
        "Chamfer, 32 x (2048 x 2048), forward": (
            lambda: chamfer_distance(clouds, clouds.flip(1)),
            lambda: (lambda d: (d.amin(2), d.amin(1)))(torch.cdist(clouds, clouds.flip(1))),
            "cdist + amin",
        ),
    }


def measure(ours: Callable, plain: Callable, repeats: int) -> tuple[list[float], list[float]]:
    """Return milliseconds of both sides, called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for side in (ours, plain):
        side()
    for _ in range(repeats):
        for side, found in zip((ours, plain), times, strict=True):
            started = time.perf_counter()
            side()
            found.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name, (ours, plain, form) in cases().items():
        mine, theirs = measure(ours, plain, args.repeats)
        ratio = statistics.median(theirs) / statistics.median(mine)
        rows.append(
            {"case": name, "plain": form, "ours_ms": mine, "plain_ms": theirs, "ratio_of_medians": round(ratio, 2)}
        )
        print(
            f"{name}: {statistics.median(mine):.2f} ms, {form} {statistics.median(theirs):.2f} ms, ratio {ratio:.1f}",
            flush=True,
        )
    if args.out:
        machine = {
            "threads": args.threads,
            "backend": backend(),
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
