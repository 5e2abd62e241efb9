"""Compare tuning with few parameters on ModelNet10, from the mini weights, with 1, 10 and 100 % of the labels.

    python -m benchmarks.studies.peft --data_root ../shared/data

Each kind is trained by cfgs/fine-tuning/<method>/mini.yaml, at a learning rate that is chosen for it before: with 10 % of the labels,
seed 0, by the accuracy on a fifth of them that is held out. The test set is evaluated once, after the last update, so that nothing is
selected on it; the labels differ from seed to seed. Every run is a process of its own, whose peak memory is its own. Runs that are
there already are not repeated. `--plan` only times ten steps of each kind, and says how long all of it will take.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.studies.compare import write_study
from tools.weights import resolve
from utils import ROOT
from utils.files import file_hash
from utils.metrics_log import read_rows
from utils.provenance import provenance

KINDS = ("full", "linear", "lora", "gst", "dapt", "prompt")
UPDATES = {0.01: 150, 0.1: 150, 1.0: 248}  # by share of the labels, rounded up to whole epochs
CLOUDS, BATCH = 3991, 32
RATES = (5e-4, 2e-3)
CHOOSING = 0.1  # share of the labels with which the rate is chosen
SEEDS = (0, 1, 2)


def main() -> None:
    """Choose rates, train everything, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="point-mae", help="point-mae (the default) or point-m2ae")
    parser.add_argument("--ckpts", type=Path, help="weights of pre-training (default: the small ones of the method)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "peft.json")
    parser.add_argument("--runs", type=Path, default=Path("experiments/peft"), help="folder below which the runs are")
    parser.add_argument("--data_root", type=Path, default=ROOT / "data", metavar="DIR", help="where ModelNet10 is")
    parser.add_argument("--plan", action="store_true", help="time ten steps of each kind only")
    args = parser.parse_args()
    args.ckpts = resolve(args.ckpts or f"mini-{args.method}")
    if args.plan:
        return plan(args)
    rates = {kind: choose_rate(args, kind) for kind in KINDS}
    results = {
        f"{100 * share:g} %": {
            kind: summary([run(args, kind, share, rates[kind], seed) for seed in SEEDS]) for kind in KINDS
        }
        for share in UPDATES
    }
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[args.method] = {
        "base": {"file": args.ckpts.name, "sha256": file_hash(args.ckpts)},
        "updates": {f"{100 * share:g} %": updates for share, updates in UPDATES.items()},
        "rates": rates,
        "seeds": list(SEEDS),
        "accuracy": "percent of the 908 test clouds after the last update",
        "results": results,
        "made with": {name: value for name, value in provenance().items() if name != "Command"},
    }
    write_study(args.out, known)
    print(json.dumps(known, indent=1))


def choose_rate(args: argparse.Namespace, kind: str) -> float:
    """Return the learning rate with the best accuracy on held-out clouds."""
    reached = {}
    for rate in RATES:
        folder = train(args, f"rate-{kind}-{rate:g}", kind, CHOOSING, rate, 0, "held_out=0.2", "select=held_out")
        reached[rate] = max(row["accuracy"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "held_out")
    return max(RATES, key=lambda rate: (reached[rate], -rate))


def run(args: argparse.Namespace, kind: str, share: float, rate: float, seed: int) -> dict:
    """Train one kind and return what it is worth and costs."""
    folder = train(args, f"{kind}-{100 * share:g}-seed{seed}", kind, share, rate, seed, "select=last")
    rows = read_rows(folder / "metrics.jsonl")
    facts = json.loads((folder / "result.json").read_text())
    epochs = [row for row in rows if row["kind"] == "epoch"]
    return {
        "accuracy": 100 * [row for row in rows if row["kind"] == "val"][-1]["accuracy"],
        "trained_parameters": facts["trained_parameters"],
        "parameters": facts["parameters"],
        "seconds_per_update": sum(row["seconds"] for row in epochs) / updates_of(share),
        "memory_mb": max(row["memory_mb"] for row in epochs),
        "saved_bytes": (folder / "ckpt-last.pth").stat().st_size,
    }


def updates_of(share: float) -> int:
    """Return how many updates are made with a share of the labels: whole epochs, at least as many as `UPDATES` says."""
    steps = steps_of(share)
    return -(-UPDATES.get(share, steps) // steps) * steps


def steps_of(share: float) -> int:
    """Return the steps of an epoch."""
    return max(round(share * CLOUDS) // BATCH, 1)


def train(args: argparse.Namespace, name: str, kind: str, share: float, rate: float, seed: int, *settings: str) -> Path:
    """Train by the main program, unless that is done already; returns the folder of the run."""
    folder = args.runs / "experiments" / "fine-tuning" / args.method / "mini" / name
    if (folder / "result.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    epochs = updates_of(share) // steps_of(share)
    sets = [
        f"dataset.train.label_fraction={share}",
        f"dataset.train.fraction_seed={seed}",
        f"optimizer.kwargs.lr={rate}",
    ]
    sets += [
        f"max_epoch={epochs}",
        f"scheduler.kwargs.epochs={epochs}",
        f"scheduler.kwargs.initial_epochs={epochs // 10}",
    ]
    flags = ["--config", str(ROOT / "cfgs" / "fine-tuning" / args.method / "mini.yaml"), "--finetune_model"]
    flags += ["--ckpts", str(args.ckpts.resolve()), "--tune", kind, "--seed", str(seed), "--exp_name", name]
    flags += ["--data_root", str(args.data_root.resolve()), "--device", "cpu"]
    flags += ["--val_freq", str(max(epochs // 10, 1) if "select=held_out" in settings else epochs)]
    flags += [part for setting in (*sets, *settings) for part in ("--set", setting)]
    subprocess.run([sys.executable, str(ROOT / "main.py"), *flags], check=True, cwd=args.runs)
    return folder


def plan(args: argparse.Namespace) -> None:
    """Time ten steps of each kind, and say how long the whole study takes."""
    share, total = (10.5 * BATCH) / CLOUDS, 0.0
    for kind in KINDS:
        started = time.perf_counter()
        folder = train(args, f"plan-{kind}", kind, share, RATES[0], 0, "select=last")
        wall = time.perf_counter() - started
        rows = read_rows(folder / "metrics.jsonl")
        step = sum(row["seconds"] for row in rows if row["kind"] == "epoch") / updates_of(share)
        updates = len(SEEDS) * sum(map(updates_of, UPDATES)) + len(RATES) * updates_of(CHOOSING)
        total += updates * step + (len(SEEDS) * len(UPDATES) + len(RATES)) * (wall - step * updates_of(share))
        print(f"{kind}: {step:.3f} s a step, {wall:.0f} s for ten with start and evaluation, {updates} updates")
    print(f"all of it: {total / 60:.0f} minutes")


def summary(runs: list[dict]) -> dict:
    """Return mean and sample standard deviation of the accuracies of several seeds, and what they cost."""
    accuracies = [run["accuracy"] for run in runs]
    return {
        "accuracy": round(statistics.mean(accuracies), 2),
        "std": round(statistics.stdev(accuracies), 2),
        "accuracies": [round(value, 2) for value in accuracies],
        "trained_parameters": runs[0]["trained_parameters"],
        "parameters": runs[0]["parameters"],
        "seconds_per_update": round(statistics.median(run["seconds_per_update"] for run in runs), 4),
        "memory_mb": round(max(run["memory_mb"] for run in runs)),
        "saved_bytes": max(run["saved_bytes"] for run in runs),
    }


if __name__ == "__main__":
    main()
