"""Time a pre-training run from the command to the end of its first step, in processor and in wall-clock seconds; medians.

    python -m benchmarks.steps.startup --out benchmarks/results/startup-cpu.json
    python -m benchmarks.steps.startup --configs cfgs/debug/inter-mae.yaml --runs 3

Every run is a process of its own, without compilation, on the CPU, and starts in an empty folder; a first one that does not count
fills the caches. Two forms: as the recipe is, which evaluates the untrained encoder by a linear SVM before the first step, and without
that. The processor time covers all threads of the process from its start on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ["cfgs/debug/point-m2ae.yaml"]
FORMS = {"first step": ["--set", "svm.random_weights=false"], "untrained encoder evaluated first": []}
HEAVY = (
    "PIL", "h5py", "matplotlib", "pandas", "scipy", "sklearn", "tensorboard", "tensorboardX", "timm", "torch._inductor.codecache",
    "torch._inductor.compile_fx", "torch.utils.tensorboard", "torchvision", "trimesh",
)  # fmt: skip
"""Modules that take long to import and that no step needs. PyTorch's optimizers import torch._dynamo themselves."""
MARK = "startup: "


def report_first_step() -> None:
    """End this process after the first step of an optimizer, with one line about it: seconds and heavy modules."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stop(*_) -> None:
        facts = {"cpu_s": time.process_time(), "heavy": loaded(HEAVY)}
        print(MARK + json.dumps(facts), flush=True)
        os._exit(0)  # what would follow is not start-up

    register_optimizer_step_post_hook(stop)


def loaded(names: Iterable[str]) -> list[str]:
    """Return those of the modules that have been imported."""
    return [name for name in names if name in sys.modules]


def start_once(config: str, flags: Iterable[str], threads: int) -> dict:
    """Start a run and stop it after its first step; returns cpu_s, wall_s and the heavy modules it had imported.

    Raises:
        SystemExit: the run ended before that; its output is shown.
    """
    command = [sys.executable, "-m", "benchmarks.steps.startup", "--child", str(ROOT / config), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        wall = time.perf_counter() - started
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"{config}: no first step\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix(MARK)) | {"wall_s": wall}


def measure(config: str, flags: list[str], *, runs: int, threads: int) -> dict:
    """Start a configuration several times; returns every time and the medians."""
    start_once(config, flags, threads)
    found = [start_once(config, flags, threads) for _ in range(runs)]
    cpu, wall = ([round(run[unit], 3) for run in found] for unit in ("cpu_s", "wall_s"))
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "median_cpu_s": statistics.median(cpu),
        "median_wall_s": statistics.median(wall),
        "heavy": found[0]["heavy"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Start the configurations several times and write the result."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.steps.startup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--runs", type=int, default=5, help="of every form, after one that does not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        report_first_step()
        import main as program

        config, *flags = args.child
        return program.main(["--config", config, "--exp_name", "startup", "--device", "cpu", *flags])
    if min(args.runs, args.threads) < 1:
        parser.error("--runs and --threads must be at least 1")
    rows = []
    for config in args.configs:
        for form, flags in FORMS.items():
            rows.append({"config": config, "form": form} | measure(config, flags, runs=args.runs, threads=args.threads))
            row = rows[-1]
            print(
                f"{config}, {form}: {row['median_cpu_s']:.2f} s of a processor, {row['median_wall_s']:.2f} s by the clock"
            )
    if args.out:
        write(args.out, rows, args.threads, arguments)
    return 0


def write(path: Path, rows: list[dict], threads: int, arguments: list[str] | None, *, name: str = "startup") -> None:
    """Write the rows, the command of benchmarks/steps/<name>.py that gave them, and where they were measured."""
    from benchmarks.ops.timing import machine
    from utils.provenance import provenance

    about = provenance() | {"Command": " ".join([f"benchmarks.steps.{name}", *(arguments or sys.argv[1:])])}
    result = {
        "provenance": about,
        "machine": machine(),
        "load_average": os.getloadavg(),
        "threads": threads,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
