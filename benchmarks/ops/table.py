"""Turn measured rows into a Markdown table, and keep the table of a document up to date.

    python -m benchmarks.ops.table benchmarks/results/ops-cpu.json
    python -m benchmarks.ops.table benchmarks/results/ops-cpu.json --into docs/performance.md --mark ops-cpu

A document holds `<!-- table: NAME -->` and `<!-- end: NAME -->`; what stands between them is replaced.
"""

import argparse
import json
from pathlib import Path

from benchmarks.ops.case import DISTRIBUTIONS
from utils.files import write_atomic

GPU = "GPU"


def markdown(results: dict) -> str:
    """Return one table a kind of data, the machine above and what could not be measured below."""
    parts = [_machine(results)]
    for kind in dict.fromkeys(run["data"] for run in results["runs"]):
        parts.append(_table([run for run in results["runs"] if run["data"] == kind], kind))
    notes = _notes(results)
    return "\n\n".join([*parts, notes] if notes else parts) + "\n"


def _machine(results: dict) -> str:
    facts = results["machine"]
    where = facts.get("gpu") or f"{facts['processor']}, {facts['cores']} cores"
    versions = ", ".join(f"{name} {found}" for name, found in results["packages"].items() if found)
    return f"{where}; ops {facts['ops']}; Python {facts['python']}; {versions}. Medians; ratio = peer / ours."


def _table(runs: list[dict], kind: str) -> str:
    columns = [_column(run) for run in runs]
    head = ["op", "against", *(f"{name}: ours, peer, ratio" for name in columns), "must", "aim", "reached"]
    lines = [f"Data: {kind}.", "", _line(head), _line(["---"] * len(head))]
    for row in runs[0]["rows"]:
        same = [next((other for other in run["rows"] if other["row"] == row["row"]), None) for run in runs]
        lines += [_line([row["title"], *cells]) for cells in _comparisons(same)]
    return "\n".join(lines)


def _column(run: dict) -> str:
    if run["threads"] is None:
        return GPU
    clock = " (processor time)" if run.get("clock") == "processor" else ""
    return f"{run['threads']} thread" + ("s" if run["threads"] > 1 else "") + clock


def _comparisons(rows: list[dict | None]) -> list[list[str]]:
    """Return the cells of every target, then those of the quickest form of each package that no target names."""
    first = next(row for row in rows if row is not None)
    lines = []
    for place, target in enumerate(first["targets"]):
        found = [row["targets"][place] if row else None for row in rows]
        cells = [_measured(row, item) for row, item in zip(rows, found, strict=True)]
        reached = " / ".join(item["met"] if item else "not measured" for item in found)
        unit = " us" if target["unit"] == "us" else "x"
        lines.append([target["against"], *cells, f"{target['must']:g}{unit}", f"{target['aim']:g}{unit}", reached])
    named = {item["peer"] for row in rows if row for item in row["targets"]}
    for package in dict.fromkeys(peer["package"] for peer in first["peers"]):
        if any(peer["package"] == package and peer["name"] in named for row in rows if row for peer in row["peers"]):
            continue
        best = [_quickest(row, package) for row in rows]
        if any(best):
            label = _plain_name(next(peer for peer in best if peer)["name"])
            lines.append([label, *(_other(row, peer) for row, peer in zip(rows, best, strict=True)), "", "", ""])
    return lines


def _quickest(row: dict | None, package: str) -> dict | None:
    timed = [peer for peer in row["peers"] if peer["package"] == package and "median_ms" in peer] if row else []
    return min(timed, key=lambda peer: peer["median_ms"], default=None)


def _measured(row: dict | None, item: dict | None) -> str:
    if item is None or item["value"] is None:
        return "not measured"
    if item["unit"] == "us":
        return f"{item['value']:.0f} us"
    peer = next(peer for peer in row["peers"] if peer["name"] == item["peer"])
    return f"{_ms(row['ours_median_ms'])}, {_ms(peer['median_ms'])} ({peer['name']}), **{item['value']:.1f}x**"


def _other(row: dict | None, peer: dict | None) -> str:
    if peer is None:
        return "not measured"
    ratio = peer["median_ms"] / row["ours_median_ms"]
    return f"{_ms(row['ours_median_ms'])}, {_ms(peer['median_ms'])} ({peer['name']}), **{ratio:.1f}x**"


def _plain_name(name: str) -> str:
    return name.split(" (")[0].split(":")[0]


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(results: dict) -> str:
    """Say once what was not measured, and why."""
    reasons = {}
    for run in results["runs"]:
        for row in run["rows"]:
            for peer in row["peers"]:
                if peer["status"] in ("disagrees", "failed"):
                    why = peer.get("error") or peer["agreement"]
                    reasons[f"{row['title']}, {peer['name']}: {peer['status']} ({why})"] = None
                elif peer["status"] == "not installed":
                    reasons[f"{DISTRIBUTIONS[peer['package']]}: not installed"] = None
                elif peer["status"] != "timed":
                    reasons[f"compiled forms: {peer['status']}"] = None
    return "Not measured: " + "; ".join(reasons) + "." if reasons else ""


def insert(document: Path, mark: str, table: str) -> None:
    """Replace what stands between the marks of a document.

    Raises:
        ValueError: the document lacks one of the marks.
    """
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- table: {mark} -->", f"<!-- end: {mark} -->"
    if begin not in text or end not in text.split(begin, 1)[1]:
        raise ValueError(f"table: {document} has no lines {begin} and {end}; put both where the table belongs")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    whole = f"{before}{begin}\n\n{table}\n{end}{after}"
    _write(document, whole)


def write_results(path: Path, results: dict) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(results, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--into", type=Path, help="document that holds the marks")
    parser.add_argument("--mark", default="ops-cpu")
    args = parser.parse_args(arguments)
    table = markdown(json.loads(args.results.read_text(encoding="utf-8")))
    if args.into is None:
        print(table, end="")
    else:
        insert(args.into, args.mark, table)


if __name__ == "__main__":
    main()
