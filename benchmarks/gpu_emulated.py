"""Count what the CUDA kernels are checked against where there is no GPU: `tests/extensions/cuda_on_cpu`, as a table.

    python -m benchmarks.gpu_emulated --out benchmarks/results/cuda-on-cpu.json
    python -m benchmarks.gpu_emulated --table benchmarks/results/cuda-on-cpu.json

Cases, comparisons and seconds of one processor for the small set, in a random order of threads, under the sanitizers, and for the large
set; and what noticed each mutant. Each row is written when it is there; rows that the file holds already are kept, unless --again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
EVERY = 17  # of the large set, which takes a quarter of an hour of one processor; the slow tests run it whole
FAMILIES = ("fps", "knn", "three_nn", "ball_query", "chamfer", "gather", "interpolate", "rows", "emd")


def rows() -> Iterator[tuple[str, Callable[[], dict]]]:
    """Yield the name of each row and what makes it."""
    for name, (variant, arguments) in SMALL.items():
        yield name, lambda variant=variant, arguments=arguments: checked(variant, *arguments)
    for family in FAMILIES:
        sample = ("--large", "--families", family, "--every", str(EVERY))
        yield f"large set, every {EVERY}th of {family}", lambda sample=sample: checked(Variant(), *sample)
    for mutant in MUTANTS:
        yield f"mutant: {mutant.name}", lambda mutant=mutant: noticed(mutant)


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
    report = {"about": about, "rows": {}}
    if args.out and args.out.exists():
        report["rows"] = json.loads(args.out.read_text(encoding="utf-8"))["rows"]
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
