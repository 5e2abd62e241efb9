"""Train one recipe with several seeds and report mean and spread of its linear SVM.

    python benchmarks/seeds.py --config cfgs/pre-training/point-m2ae/modelnet10-small.yaml --seeds 0,1,2 --exp_name small \\
        --out benchmarks/results/modelnet10-small -- --val_freq 5

Runs that are complete are not repeated; `--jobs 2` trains two at a time, one thread each. Arguments behind `--` go to main.py. The
folder `--out` receives the log, metrics and configuration of each seed, `summary.json`, `summary.md` and `curves.png`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--exp_name", required=True, help="prefix; the seed is appended")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("arguments", nargs="*", help="passed on to main.py, behind --")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    with ThreadPoolExecutor(args.jobs) as pool:
        folders = list(pool.map(lambda seed: train(args, seed), seeds))
    runs = {seed: collect(folder, args.out / f"seed{seed}") for seed, folder in zip(seeds, folders, strict=True)}
    summary = summarise(runs)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (args.out / "summary.md").write_text(table(summary, args.config))
    draw(runs, args.out / "curves.png")
    print(table(summary, args.config))


def train(args: argparse.Namespace, seed: int) -> Path:
    """Train one seed, or find it trained; returns the folder of the run."""
    below = Path(args.config).resolve().relative_to(ROOT / "cfgs").with_suffix("")
    folder = Path("experiments") / below / f"{args.exp_name}_seed{seed}"
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--config",
        args.config,
        "--exp_name",
        folder.name,
        "--seed",
        str(seed),
    ]
    if not (folder / "report.html").exists():
        resume = ["--resume"] if (folder / "ckpt-last.pth").exists() else []
        threads = {} if args.jobs == 1 else {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *resume, *args.arguments], check=True, env={**os.environ, **threads})
    return folder


def collect(folder: Path, target: Path) -> list[dict]:
    """Copy what documents a run and return its rows."""
    target.mkdir(parents=True, exist_ok=True)
    for path in [folder / "metrics.jsonl", folder / "config.yaml", folder / "provenance.yaml", *folder.glob("*.log")]:
        shutil.copy(path, target / ("run.log" if path.suffix == ".log" else path.name))
    return [json.loads(line) for line in (target / "metrics.jsonl").read_text().splitlines()]


def summarise(runs: dict[int, list[dict]]) -> dict:
    """Return mean, sample standard deviation and the single values of what the runs were judged by, in percent."""
    values: dict[str, list[float]] = {}
    for rows in runs.values():
        judged = [row for row in rows if row["kind"] == "svm"]
        trained = [row for row in judged if row["epoch"] is not None]
        epochs = [row for row in rows if row["kind"] == "epoch"]
        found = {
            "loss x 1000, last epoch": 1000 * epochs[-1]["loss"],
            "training, wall minutes, one thread of a busy machine": sum(row["seconds"] for row in epochs) / 60,
            "trained, last epoch, published C": 100 * trained[-1]["accuracy"],
            "trained, best epoch (selected on the test set), published C": 100
            * max(row["accuracy"] for row in trained),
            "trained, last epoch, cross-validated C": 100 * trained[-1]["chosen_accuracy"],
        }
        if judged[0]["epoch"] is None:
            found["random weights, published C"] = 100 * judged[0]["accuracy"]
            found["random weights, cross-validated C"] = 100 * judged[0]["chosen_accuracy"]
        for name, value in found.items():
            values.setdefault(name, []).append(round(value, 3))
    spread = {name: statistics.stdev(found) if len(found) > 1 else 0.0 for name, found in values.items()}
    quantities = {
        name: {"mean": round(statistics.mean(found), 3), "std": round(spread[name], 3), "values": found}
        for name, found in values.items()
    }
    return {"seeds": sorted(runs), "quantities": quantities}


def table(summary: dict, config: str) -> str:
    lines = [
        f"`{config}`, seeds {', '.join(map(str, summary['seeds']))}",
        "",
        "| | mean | std | per seed |",
        "|---|---|---|---|",
    ]
    for name, found in summary["quantities"].items():
        lines.append(
            f"| {name} | {found['mean']:.2f} | {found['std']:.2f} | {', '.join(f'{value:.2f}' for value in found['values'])} |"
        )
    return "\n".join(lines) + "\n"


def draw(runs: dict[int, list[dict]], path: Path) -> None:
    """Draw loss and SVM accuracy over the epochs, one line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for seed, rows in runs.items():
        epochs = [row for row in rows if row["kind"] == "epoch"]
        judged = [row for row in rows if row["kind"] == "svm" and row["epoch"] is not None]
        left.plot([row["epoch"] for row in epochs], [1000 * row["loss"] for row in epochs], label=f"seed {seed}")
        right.plot(
            [row["epoch"] for row in judged],
            [100 * row["accuracy"] for row in judged],
            marker=".",
            label=f"seed {seed}",
        )
    left.set(xlabel="epoch", ylabel="Chamfer loss x 1000", title="pre-training", yscale="log")
    right.set(xlabel="epoch", ylabel="accuracy in %", title="linear SVM at the published C")
    right.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
