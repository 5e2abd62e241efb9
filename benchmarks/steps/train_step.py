"""Time a pre-training step of Point-M2AE on the CPU against the plain model, both interleaved in one run; medians.

    python -m benchmarks.steps.train_step --threads 2 --out benchmarks/results/train-step-cpu-2.json

A step is augmentation, grouping, forward, backward, check for finite gradients and AdamW, at the published size on clouds of the
built-in set. Each round also times the matrix product 8192 x 512 x 512 in both precisions, the rate of the machine that steps are
measured by. Operations are those of the plain model, for ours less the repeated group half of the embedding; ours multiplies less
than that by now, so its fraction says how fast that work gets done, not how busy the units are.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps.phases import Clock, matrix_rate
from datasets import build_dataset
from datasets.transforms import augment
from extensions.m2ae_ops import backend
from models import build_model
from models.hierarchical import HierarchicalMAEConfig
from models.plain import PlainPointM2AE
from tools.optim import build_optimizer, parameter_groups
from tools.train import update
from utils.config.schema import OptimizerConfig, OptimizerKwargs
from utils.device import AUTOCAST_DTYPES, autocast, keep_freed_memory
from utils.provenance import provenance

PHASES = ("augmentation", "grouping", "masking", "embedding", "encoder", "decoder", "loss", "backward", "optimizer")
SIDES = ("baseline fp32", "baseline bf16", "ours fp32", "ours bf16")
RATE, WEIGHT_DECAY = 1e-4, 0.05


def watch(model: nn.Module, clock: Clock) -> None:
    """Tell a clock when a model groups, masks, embeds, encodes and decodes."""
    clock.wrap(model, "group", "grouping", then="masking")
    clock.watch(model.h_encoder, "encoder", then="decoder")
    for embed in model.h_encoder.token_embed:
        clock.watch(embed, "embedding")
    model.rec_head.register_forward_hook(lambda *_: clock.to("loss"))


class Side:
    """One model with its optimizer and precision, and the phases of its steps in milliseconds."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str):
        self.model, self.optimizer, self.precision = model.train(), optimizer, precision
        self.clock = Clock(PHASES, torch.device("cpu"))
        watch(model, self.clock)
        self.steps: list[dict[str, float]] = []
        self.error: str | None = None

    def step(self, points: Tensor, generator: torch.Generator, *, book: bool = True) -> None:
        """Take a training step and book its phases."""
        clock = self.clock
        clock.start()
        moved = augment(points, "scale_translate", "y", generator)
        with autocast(points.device, self.precision):
            out = self.model(moved)
        loss = out["loss"] if isinstance(out, dict) else out
        clock.to("backward")
        loss.backward()
        clock.to("optimizer")
        self.update()
        clock.leave()
        if book:
            self.steps.append(clock.spent)

    def update(self) -> None:
        """Take a step of the optimizer."""
        if isinstance(self.model, PlainPointM2AE):
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            update(self.optimizer, clip=None, scaler=None, repeats=1)

    def total(self) -> float:
        """Return the median milliseconds of a step."""
        return statistics.median(sum(step.values()) for step in self.steps)


def build_sides(names: list[str]) -> dict[str, Side]:
    """Build the models, all with the same weights."""
    torch.manual_seed(0)
    weights = build_model({"NAME": "Point_M2AE"}).state_dict()
    sides = {}
    for name in names:
        who, precision = name.split()
        if who == "ours":
            model = build_model({"NAME": "Point_M2AE"})
            kwargs = OptimizerKwargs(lr=RATE, weight_decay=WEIGHT_DECAY)
            optimizer = build_optimizer(model, OptimizerConfig(type="AdamW", kwargs=kwargs))
        else:
            model = PlainPointM2AE(HierarchicalMAEConfig())
            optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=RATE)
        model.load_state_dict(weights)
        sides[name] = Side(model, optimizer, precision)
    return sides


def operations(points: Tensor) -> dict[str, float]:
    """Count GFLOP of a step, forward and backward, of both sides."""
    config = HierarchicalMAEConfig()
    model = PlainPointM2AE(config).train()
    with FlopCounterMode(display=False) as counter:
        model(points).backward()
    plain = counter.get_total_flops() / 1e9
    below = [None, *config.encoder_dims]
    saved = 0
    for scale, (groups, size) in enumerate(zip(config.num_groups, config.group_sizes, strict=True)):
        # The group half of the joining layer runs on one row a group instead of on every member.
        inner, outer = config.embed_widths[1:] if scale == 0 else (below[scale], config.encoder_dims[scale])
        saved += 3 * 2 * len(points) * groups * (size - 1) * inner * outer
    return {"baseline": plain, "ours": plain - saved / 1e9}


def measure(sides: dict[str, Side], clouds: Tensor, batch: int, rounds: int) -> dict[str, list[float]]:
    """Run all sides in turn, round by round; returns the matrix rates of the rounds by precision."""
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(-1, rounds):
        points = clouds[torch.arange(number * batch, (number + 1) * batch) % len(clouds)]
        for precision, found in rates.items():
            found.append(matrix_rate(torch.device("cpu"), AUTOCAST_DTYPES[precision] or torch.float32))
        for name, side in sides.items():
            if side.error:
                continue
            torch.manual_seed(number + 1)
            try:
                side.step(points, torch.Generator().manual_seed(number + 1), book=number >= 0)
            except RuntimeError as error:
                if not name.startswith("baseline"):
                    raise
                side.error = str(error).splitlines()[0]
    return rates


def summarise(sides: dict[str, Side], rates: dict[str, list[float]], gflop: dict[str, float], batch: int) -> list[dict]:
    """Return one row a side: medians, shares, samples a second, fraction of the matrix rate, speed against the fp32 baseline."""
    base = sides.get("baseline fp32")
    rows = []
    for name, side in sides.items():
        if side.error:
            rows.append({"side": name, "error": side.error})
            continue
        total = side.total()
        phases = {phase: statistics.median(step[phase] for step in side.steps) for phase in PHASES}
        rate = gflop[name.split()[0]] / total * 1000
        rows.append(
            {
                "side": name,
                "step_ms": round(total, 1),
                "samples_per_second": round(1000 * batch / total, 2),
                "speed_against_baseline_fp32": round(base.total() / total, 2) if base else None,
                "gflop": round(gflop[name.split()[0]], 1),
                "fraction_of_matrix_rate": round(rate / statistics.median(rates[side.precision]), 3),
                "phase_ms": {phase: round(value, 1) for phase, value in phases.items()},
                "all_steps_ms": [round(sum(step.values()), 1) for step in side.steps],
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Return the rows as text."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['side']}: does not run: {row['error']}")
            continue
        shares = ", ".join(f"{name} {value / row['step_ms']:.0%}" for name, value in row["phase_ms"].items())
        lines.append(
            f"{row['side']}: {row['step_ms']:.0f} ms, {row['samples_per_second']:.1f} samples/s, "
            f"{row['fraction_of_matrix_rate']:.0%} of the matrix rate, "
            f"{row['speed_against_baseline_fp32']}x baseline fp32; {shares}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all sides in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {', '.join(SIDES)}")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.sides.split(",")
    if unknown := set(names) - set(SIDES):
        parser.error(f"--sides: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(SIDES)}")
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as main.py does
    clouds = build_dataset({"NAME": "Synthetic", "clouds": max(20, 4 * args.batch)})
    clouds = torch.from_numpy(clouds.points[:].copy())
    sides = build_sides(names)
    gflop = operations(clouds[: args.batch])
    rates = measure(sides, clouds, args.batch, args.rounds)
    rows = summarise(sides, rates, gflop, args.batch)
    print(table(rows))
    medians = {precision: round(statistics.median(found), 1) for precision, found in rates.items()}
    print(f"matrix product 8192 x 512 x 512: {medians} GFLOP/s")
    if args.out:
        about = provenance() | {
            "Command": " ".join(["benchmarks.steps.train_step", *sys.argv[1:]]),
            "Backend": backend(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"provenance": about, "batch": args.batch, "matrix_gflops": medians, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
