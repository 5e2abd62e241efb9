"""Print the short table of what `gpu_suite.sh` measured, and write it as JSON: `python -m benchmarks.gpu_suite FOLDER`."""

import argparse
import json
from pathlib import Path

from benchmarks import gpu_embed
from utils.files import write_atomic

CLOUDS, EPOCHS = 41_952, 300  # ShapeNet-55 and the published number of epochs


def main(arguments: list[str] | None = None) -> None:
    """Print and write the summary of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    summary = summarise(folder)
    write_atomic(folder / "summary.json", lambda file: file.write((json.dumps(summary, indent=1) + "\n").encode()))
    print(table(summary), end="")


def summarise(folder: Path) -> dict:
    """Return stages, ops against their targets and steps with the time of a whole pre-training; what is missing is left out."""
    stages = [line.split("\t") for line in (folder / "stages.tsv").read_text(encoding="utf-8").splitlines()]
    summary = {
        "stages": [{"stage": name, "status": int(status), "seconds": int(spent)} for name, status, spent in stages],
        "tests": _last_line(folder / "tests.log"),
        "ops": [],
        "embeddings": [],
        "steps": [],
    }
    for path in sorted(folder.glob("ops-*.json")):
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        rows = [row for run in runs for row in run["rows"]]
        summary["ops"] += [
            {"op": row["title"], "ours_ms": row["ours_median_ms"]}
            | {key: target[key] for key in ("against", "value", "unit", "must", "aim", "met")}
            for row in rows
            for target in row["targets"]
        ]
    for path in sorted(folder.glob("embed-*.json")):
        summary["embeddings"] += [gpu_embed.line(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    for path in sorted(folder.glob("method-steps-*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        summary["steps"] += [_step(row, published=report["size"] == "published") for row in report["rows"]]
    return summary


def _step(row: dict, *, published: bool) -> dict:
    """Return what the table shows of a case; at published sizes also what 300 epochs of ShapeNet-55 would take without SVM."""
    keys = (
        "task",
        "method",
        "precision",
        "batch",
        "samples_per_second",
        "step_ms",
        "memory_mb",
        "utilisation",
        "error",
    )
    found = {key: row[key] for key in keys if key in row}
    if published and row["task"] == "pre-training" and "samples_per_second" in row:
        found["minutes_of_300_epochs"] = round(EPOCHS * CLOUDS / row["samples_per_second"] / 60, 1)
    return found


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "nothing"


def table(summary: dict) -> str:
    """Return the summary as text."""
    lines = ["stages: " + ", ".join(f"{s['stage']} {s['seconds']} s" + _fault(s) for s in summary["stages"])]
    lines.append(f"tests: {summary['tests']}")
    for op in summary["ops"]:
        value = "not measured" if op["value"] is None else f"{op['value']:.1f}{op['unit']}"
        lines.append(
            f"{op['op']}: {op['ours_ms']:.3g} ms; against {op['against']} {value}, must {op['must']:g}, aim {op['aim']:g}: {op['met']}"
        )
    lines += [f"patch embedding, {row}" for row in summary["embeddings"]]
    for step in summary["steps"]:
        name = f"{step['task']}, {step['method']}, {step['precision']}, batch {step['batch']}"
        if "error" in step:
            lines.append(f"{name}: {step['error']}")
            continue
        whole = f", {EPOCHS} epochs in {step['minutes_of_300_epochs']} min" if "minutes_of_300_epochs" in step else ""
        lines.append(
            f"{name}: {step['samples_per_second']:.0f} samples/s, {step['step_ms']:.1f} ms, {step['memory_mb']} MB, "
            f"{step['utilisation']:.0%} of the matrix rate{whole}"
        )
    return "\n".join(lines) + "\n"


def _fault(stage: dict) -> str:
    return f" (status {stage['status']})" if stage["status"] else ""


if __name__ == "__main__":
    main()
