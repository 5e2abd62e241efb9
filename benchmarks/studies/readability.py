"""Count what a reader walks through: files, functions and depth of a forward pass and of an update, and lines by package.

    python -m benchmarks.studies.readability
    python -m benchmarks.studies.readability --checkout ../before --label before --out benchmarks/results/readability.json

A profiler counts the Python functions of the repository that run. Traced are the second forward pass with loss of Point-M2AE in training
mode, of its classifier, and one update of `cfgs/debug/point-m2ae.yaml`: everything from the end of one optimizer step to the end of the
next. Ops (`extensions/`) are counted apart. Depth is the longest chain of such functions that call each other, comprehensions left out.
`--checkout` counts in another version of the repository, by its own code; `--out` adds the result under `--label`.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "models",
    "tools",
    "segmentation",
    "utils",
    "datasets",
    "extensions/m2ae_ops",
    "benchmarks",
    "tests",
    "cfgs",
    "docs",
)
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".yaml", ".md")
PART_OF_A_FUNCTION = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")
OPS = "extensions"
POINTS, CLOUDS = 2048, 2


class Trace:
    """Collects the functions of a repository that run while it is active."""

    def __init__(self, root: Path):
        self.root = f"{root}{os.sep}"
        self.functions: set[tuple[str, str, int]] = set()
        self.depth = {"with ops": 0, "without ops": 0}
        self.deepest: list[str] = []  # files of the longest chain, outermost call first
        self._before: set = set()  # the frames themselves: a number of one that has ended would be given out again

    def start(self) -> None:
        """Begin; functions that run already count when they call others, not for the depth."""
        frame = sys._getframe(1)
        while frame is not None:
            self._before.add(frame)
            frame = frame.f_back
        sys.setprofile(self._event)

    def stop(self) -> None:
        """End."""
        sys.setprofile(None)
        self._before.clear()

    def _event(self, frame, event: str, _) -> None:
        if event != "call":
            return
        caller = frame.f_back
        while caller is not None and not self._own(caller):
            caller = caller.f_back
        for one in (frame, caller):
            if one is not None and self._own(one):
                self.functions.add((self._file(one), one.f_code.co_qualname, one.f_code.co_firstlineno))
        if self._own(frame):
            self._measure(frame)

    def _measure(self, frame) -> None:
        chain = []
        while frame is not None and frame not in self._before:
            if self._own(frame):
                chain.append(self._file(frame))
            frame = frame.f_back
        self.depth["with ops"] = max(self.depth["with ops"], len(chain))
        plain = sum(not file.startswith(OPS) for file in chain)
        if plain > self.depth["without ops"]:
            self.depth["without ops"], self.deepest = plain, chain[::-1]

    def _own(self, frame) -> bool:
        code = frame.f_code
        if code.co_filename == __file__ or code.co_name in PART_OF_A_FUNCTION:
            return False
        return code.co_filename.startswith(self.root)

    def _file(self, frame) -> str:
        return frame.f_code.co_filename.removeprefix(self.root)

    def result(self) -> dict:
        """Return what was counted, in the ops and outside of them."""
        result: dict = {"depth": dict(self.depth), "deepest": self.deepest}
        for where, inside in (("without ops", False), ("ops", True)):
            functions = [function for function in self.functions if function[0].startswith(OPS) == inside]
            files = sorted({function[0] for function in functions})
            lines = sum(_lines(Path(self.root) / file) for file in files)
            result[where] = {"files": len(files), "functions": len(functions), "lines": lines, "names": files}
        names = result["without ops"]["names"]
        result["without ops"]["files outside models"] = sum(not name.startswith("models") for name in names)
        return result


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def count_lines(root: Path) -> dict[str, int]:
    """Return the lines of each package, by kind of file where it has several."""
    found: dict[str, int] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                name = f"{package} *{path.suffix}"
                found[name] = found.get(name, 0) + _lines(path)
    return found


def trace_models(root: Path) -> dict[str, dict]:
    """Trace a forward pass with loss of the pre-training model and of its classifier, the second one of each."""
    import torch

    from models import build_model

    torch.manual_seed(0)
    points = torch.rand(CLOUDS, POINTS, 3) - 0.5
    found = {}
    for name in ("Point_M2AE", "Point_M2AE_ModelNet40"):
        model = build_model({"NAME": name}).train()

        def run(model=model, name=name):
            if name == "Point_M2AE":
                return model(points)["loss"]
            return model.loss(model(points), torch.zeros(CLOUDS, dtype=torch.int64))

        run()
        trace = Trace(root)
        trace.start()
        run()
        trace.stop()
        found[f"forward and loss, {name}"] = trace.result()
    return found


def trace_update(root: Path) -> dict[str, dict]:
    """Trace one update of a run of the main program, from the end of an optimizer step to the end of the next."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import main as program

    trace, steps = Trace(root), []

    def after_a_step(*_) -> None:
        steps.append(None)
        if len(steps) == 3:
            trace.start()
        elif len(steps) == 4:
            trace.stop()

    handle = register_optimizer_step_post_hook(after_a_step)
    argv = ["--config", str(root / "cfgs/debug/point-m2ae.yaml"), "--exp_name", "trace", "--device", "cpu"]
    argv += ["--set", "svm.random_weights=false", "--set", "max_epoch=0"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        status = program.main(argv)
    handle.remove()
    if status or len(steps) < 4:
        raise SystemExit(f"readability: the run ended with status {status} after {len(steps)} updates")
    return {"one update, Point_M2AE": trace.result()}


def main(arguments: list[str] | None = None) -> None:
    """Count in a checkout, in a process of its own, and print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="root of the repository to count in")
    parser.add_argument("--label", default="after")
    parser.add_argument("--out", type=Path, help="JSON file; other labels in it stay")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    root = args.checkout.resolve()
    if args.child:
        sys.path[0] = str(root)
        with contextlib.redirect_stdout(sys.stderr):
            found = trace_models(root) | trace_update(root)
        print(json.dumps(found))
        return
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--checkout", str(root)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    result = {"traces": json.loads(done.stdout.splitlines()[-1]), "lines": count_lines(root)}
    print(table(result), end="")
    if args.out:
        known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        args.out.write_text(json.dumps(known | {args.label: result}, indent=1) + "\n", encoding="utf-8")


def table(result: dict) -> str:
    """Return a result as Markdown tables."""
    lines = ["| | files | outside models/ | functions | lines | depth |", "|---|---|---|---|---|---|"]
    for name, trace in result["traces"].items():
        depth = {"without ops": trace["depth"]["without ops"], "ops": trace["depth"]["with ops"]}
        for where, title in (("without ops", name), ("ops", "- the ops under it (depth: with them)")):
            row = trace[where]
            outside = row.get("files outside models", "")
            cells = (title, row["files"], outside, row["functions"], row["lines"], depth[where])
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| package | lines |", "|---|---|"]
    lines += [f"| `{name}` | {count} |" for name, count in result["lines"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
