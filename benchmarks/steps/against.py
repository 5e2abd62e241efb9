"""Compare the speed of two checkouts: training steps and the rows of the op table, measured in turn on one thread of the CPU.

    python -m benchmarks.steps.against ../before --out benchmarks/results/against-cpu.json
    python -m benchmarks.steps.against ../before --cases Point_M2AE,knn --rounds 21

Each checkout has a process of its own that runs its own code and waits while the other one is timed. A round times every case once in
both, the order alternating; both draw the same inputs. Times are processor time, which other programs disturb less than the clock on the
wall. The ratio is the median over the rounds of other / this: above 1 this checkout is faster. A step is grouping, masking, forward,
backward and AdamW at the published size on clouds of the built-in set, without the loop around it (`method_steps --against` has that).
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"Point_M2AE": 2048, "Point_MAE": 1024}  # model and its points
STEADY_MS = 20.0


class Step:
    """A model with its optimizer; calling it takes one training step."""

    def __init__(self, name: str, precision: str, batch: int):
        import torch

        from datasets import build_dataset
        from models import build_model

        torch.manual_seed(0)
        self.model = build_model({"NAME": name}).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        clouds = build_dataset({"NAME": "Synthetic", "clouds": max(20, batch), "N_POINTS": STEPS[name]})
        self.points = torch.tensor(clouds.points[:batch])
        self.half = precision == "bf16"
        self.calls = 0

    def draw(self) -> tuple:
        """Set the random numbers of the next step."""
        import torch

        self.calls += 1
        torch.manual_seed(self.calls)
        return ()

    def __call__(self) -> float:
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            loss = self.model(self.points)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Row:
    """Our side of a row of the op table."""

    def __init__(self, case):
        self.case = case

    def draw(self) -> tuple:
        """Return fresh arguments of the call."""
        return self.case.ours.prepare(*self.case.draw())

    def __call__(self, *args) -> None:
        self.case.ours.call(*args)


def op_cases() -> dict:
    """Return the rows of the op table of this checkout by key, wherever it keeps them."""
    for package in ("benchmarks.ops", "benchmarks"):
        with contextlib.suppress(ModuleNotFoundError):
            cases = importlib.import_module(f"{package}.cases")
            clouds = importlib.import_module(f"{package}.clouds")
            return {case.key: case for case in cases.build_cases(cases.CPU_SIZES, clouds.Clouds("uniform", seed=0))}
    raise SystemExit("against: this checkout has no table of ops")


def work(precisions: list[str], batch: int) -> None:
    """Answer requests on stdin, a name of a case a line, by milliseconds and the result on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    try:
        from utils.device import keep_freed_memory
    except ImportError:  # where older checkouts have it
        from utils.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as main.py does
    rows, cases = op_cases(), {}
    names = [f"{name}, {precision}" for name in STEPS for precision in precisions]
    print(json.dumps([*names, *rows]), file=answers, flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in cases:
            cases[name] = Row(rows[name]) if name in rows else Step(*name.split(", "), batch)
        args = cases[name].draw()
        began = time.process_time()
        result = cases[name](*args)
        spent = 1000 * (time.process_time() - began)
        calls = 1 if isinstance(cases[name], Step) else min(10, int(STEADY_MS / max(spent, 1e-3)))
        if calls > 1:
            began = time.process_time()
            for _ in range(calls):
                cases[name](*args)
            spent = 1000 * (time.process_time() - began) / calls
        print(json.dumps([spent, result]), file=answers, flush=True)


class Worker:
    """The process of a checkout."""

    def __init__(self, root: Path, precisions: str, batch: int):
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--precisions", precisions]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, "--batch", str(batch), str(root)],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.cases: list[str] = self._answer()

    def time(self, case: str) -> list:
        """Return milliseconds of a case and what it gave."""
        print(case, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> list:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"against: the process of a checkout ended with status {self._process.wait()}")
        return json.loads(line)


def main(arguments: list[str] | None = None) -> None:
    """Compare this checkout with another one and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--cases", default="", help="names, or beginnings of them; default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        sys.path[0] = str(args.other)
        work(args.precisions.split(","), args.batch)
        return
    sides = {name: Worker(root.resolve(), args.precisions, args.batch) for name, root in
             (("other", args.other), ("this", ROOT))}  # fmt: skip
    chosen = tuple(args.cases.split(","))
    names = [name for name in sides["this"].cases if name in sides["other"].cases and name.startswith(chosen)]
    rows = [measure(name, sides, args.rounds) for name in names]
    for side in sides.values():
        side.close()
    print(table(rows), end="")
    if args.out:
        revisions = {name: revision(root) for name, root in (("other", args.other), ("this", ROOT))}
        result = {"revisions": revisions, "rounds": args.rounds, "batch": args.batch}
        result |= {"load_average": os.getloadavg(), "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def revision(root: Path) -> str:
    """Return the git revision of a checkout, "unknown" where it has none."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def measure(name: str, sides: dict[str, Worker], rounds: int) -> dict:
    """Time a case in both checkouts in turn, after one round that does not count."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    given = {side: worker.time(name)[1] for side, worker in sides.items()}
    for turn in range(rounds):
        for side in sorted(sides, reverse=bool(turn % 2)):
            times[side].append(sides[side].time(name)[0])
    ratio = statistics.median(a / b for a, b in zip(times["other"], times["this"], strict=True))
    row = {"case": name, "ratio": round(ratio, 3)}
    row |= {f"{side}_ms": round(statistics.median(found), 3) for side, found in times.items()}
    return row | {"loss": given} if given["this"] is not None else row


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| case | other, ms | this, ms | other / this |", "|---|---|---|---|"]
    lines += [f"| {row['case']} | {row['other_ms']:.4g} | {row['this_ms']:.4g} | {row['ratio']:.3f} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
