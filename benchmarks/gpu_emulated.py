"""Count what the CUDA kernels are checked against where there is no GPU: `tests/extensions/cuda_on_cpu`, as a table.

    python -m benchmarks.gpu_emulated --out benchmarks/results/cuda-on-cpu.json
    python -m benchmarks.gpu_emulated --table benchmarks/results/cuda-on-cpu.json

Cases, comparisons and seconds of one processor for the small set, in a random order of threads, under the sanitizers, and for the large
set; and what noticed each mutant. Each row is written when it is there, so that a run that was stopped goes on: rows that the file holds
already are kept, as long as kernels, emulator and cases are what they were, unless --again.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from extensions.m2ae_ops.private.library import CSRC
from tests.extensions.cuda_on_cpu.build import Variant, build
from tests.extensions.cuda_on_cpu.mutants import MUTANTS
from tests.extensions.cuda_on_cpu.run import Outcome, missing, run_cases
from utils.files import write_atomic
from utils.provenance import ROOT, provenance

SMALL = {
    "small set": (Variant(), ()),
    "small set, threads in random order": (Variant(), ("--seed", "11")),
    "small set, unoptimised, calls told apart": (Variant("sites"), ()),
    "small set, address and undefined behaviour": (Variant("address"), ()),
    "small set, the same, before sm_80": (Variant("address", 700), ("--device", "major=7")),
    "small set, threads": (Variant("thread"), ()),
}
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")
WHOLE = ("fps", "knn", "three_nn", "ball_query", "chamfer", "gather", "group", "interpolate", "rows")
FAMILIES = dict.fromkeys(WHOLE, 1) | {"emd": 17}
"""Of the large set: one in how many cases is run. All matchings take twenty minutes of a processor; the slow tests run them."""


def rows() -> Iterator[tuple[str, Callable[[], dict]]]:
    """Yield the name of each row and what makes it."""
    for name, (variant, arguments) in SMALL.items():
        yield name, lambda variant=variant, arguments=arguments: checked(variant, *arguments)
    for family, every in FAMILIES.items():
        sample = ("--large", "--families", family, "--every", str(every))
        name = family if every == 1 else f"one in {every} of {family}"
        yield f"large set, {name}", lambda sample=sample: checked(Variant(), *sample)
    for mutant in MUTANTS:
        yield f"mutant: {mutant.name}", lambda mutant=mutant: noticed(mutant)


def sources() -> str:
    """Return a digest of all that decides a result: the kernels, the emulator, and what they are compared with."""
    digest = hashlib.sha256()
    folders = (ROOT / "tests" / "extensions" / "cuda_on_cpu", CSRC / "cuda", CSRC.parent / "reference")
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def kept(report: dict, about: dict) -> dict[str, dict]:
    """Return the rows of a file of results that hold for these sources and this PyTorch."""
    return report["rows"] if all(report["about"].get(key) == about[key] for key in ("Sources", "torch")) else {}


def checked(variant: Variant, *arguments: str) -> dict:
    """Run a set; returns its counts, and the first complaints."""
    if reason := missing(variant.name):
        return {"skipped": reason}
    began = time.perf_counter()
    build(variant)
    built = time.perf_counter() - began
    outcome = run_cases(variant, *arguments)
    found = {"clean": outcome.clean, "build_seconds": round(built, 1), "complaints": complaints(outcome)}
    if outcome.totals:
        found |= {key: outcome.totals[key] for key in ("cases", "comparisons")}
        found["seconds"] = round(outcome.totals["seconds"], 1)
    return found


def noticed(mutant) -> dict:
    """Run the cases of a mutant; returns by what it was noticed."""
    if reason := missing(mutant.variant().name):
        return {"skipped": reason}
    outcome = run_cases(mutant.variant(), "--families", ",".join(mutant.families))
    return {"noticed": not outcome.clean, "by": mutant.by, "complaints": complaints(outcome)[:1]}


def complaints(outcome: Outcome) -> list[str]:
    """Return what a run complained of, without the folder of this checkout."""
    return [line.replace(f"{ROOT}/", "")[:300] for line in outcome.complaints()]


def table(report: dict) -> str:
    """Return the rows as Markdown."""
    lines = ["| Set | Cases | Comparisons | Seconds | Found |", "| --- | --- | --- | --- | --- |"]
    mutants = []
    for name, row in report["rows"].items():
        if name.startswith("mutant: "):
            mutants.append((name.removeprefix("mutant: "), row))
        elif "skipped" in row:
            lines.append(f"| {name} | | | | {row['skipped']} |")
        else:
            found = "nothing" if row["clean"] else "; ".join(row["complaints"][:2])
            lines.append(
                f"| {name} | {row.get('cases', '')} | {row.get('comparisons', '')} | {row.get('seconds', '')} | {found} |"
            )
    lines += ["", "| Mutant | Noticed by |", "| --- | --- |"]
    lines += [
        f"| {name} | {row.get('skipped') or (row['by'] if row['noticed'] else 'nobody')} |" for name, row in mutants
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 where a set found something or a mutant went unnoticed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_emulated", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", default="", help="only rows that begin with this")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--table", type=Path, help="print a file of results and end")
    args = parser.parse_args(arguments)
    if args.table:
        print(table(json.loads(args.table.read_text(encoding="utf-8"))), end="")
        return 0
    about = {key: value for key, value in provenance().items() if key != "Command"}
    report = {"about": about | {"Sources": sources()}, "rows": {}}
    if args.out and args.out.exists():
        report["rows"] = kept(json.loads(args.out.read_text(encoding="utf-8")), report["about"])
    for name, make in rows():
        if not name.startswith(args.rows) or (name in report["rows"] and not args.again):
            continue
        report["rows"][name] = make()
        print(f"{name}: {report['rows'][name]}", file=sys.stderr, flush=True)
        if args.out:
            text = json.dumps(report, indent=1) + "\n"
            write_atomic(args.out, lambda file, text=text: file.write(text.encode()))
    print(table(report), end="")
    good = [row.get("clean", row.get("noticed", True)) for row in report["rows"].values()]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
