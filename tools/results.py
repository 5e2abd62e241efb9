"""Where an evaluation writes to, and what it found as a file that programs can read."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np

from datasets import CloudSet
from tools.context import RunContext
from utils.errors import UserError
from utils.files import write_atomic
from utils.provenance import provenance

# What names of results say of an epoch, or a C, that was chosen.
SELECTED_ON_TEST = "selected on the test set"
SELECTED_HELD_OUT = "selected on held-out clouds"


def printable(results: Iterable[str]) -> list[str]:
    """Return the names of the results that a table may print as they are: those that were not selected on the test set."""
    return [name for name in results if SELECTED_ON_TEST not in name]


def open_output(run: RunContext, what: str) -> Path:
    """Make a time-stamped folder for what an evaluation writes, `<what>_<time>` in that of the run; no other process uses it."""
    stamp = f"{datetime.now():%Y%m%d_%H%M%S}"
    for number in range(1000):
        run.output = run.folder / (f"{what}_{stamp}" + (f"_{number + 1}" if number else ""))
        try:
            run.output.mkdir(parents=True)
        except FileExistsError:  # another one began in the same second
            continue
        return run.output
    raise FileExistsError(run.output)


def write_result(run: RunContext, results: dict[str, float]) -> Path:
    """Write `result.json`: what a command found, by what it is, and what it found it with."""
    model, entries = run.config.model, run.config.dataset
    data = {
        name: entry.NAME
        for name, entry in {
            "train": entries.train,
            "val": entries.val,
            "test": entries.test,
            "svm": entries.svm and entries.svm.test,
        }.items()
        if entry is not None
    }
    content = {
        "results": results,
        "unit": "percent, where a name says nothing else",
        "for tables": printable(results),
        "select": run.config.select,
        "held_out": run.config.held_out,
        "model": model.NAME,
        "checkpoint": run.args.ckpts,
        "seed": run.seed,
        "data": data,
        **run.facts,
        "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "command": provenance()["Command"],
    }
    path = run.output / "result.json"
    text = json.dumps(content, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))
    return path


def check_weights(path: Path, now: str | None) -> None:
    """Raise where the run of a `result.json` started from other weights than `now`, a checkpoint or None for random weights.

    Raises:
        UserError: naming both.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    before = content.get("checkpoint")
    same = before == now if before is None or now is None else Path(before).resolve() == Path(now).resolve()
    if "checkpoint" in content and not same:
        shown = [text or "random weights" for text in (before, now)]
        raise UserError(
            f"{path}: its run started from {shown[0]}, not from {shown[1]}; give --ckpts of that run, another name, or remove {path.parent}"
        )


def write_predictions(folder: Path, clouds: CloudSet, predictions: np.ndarray) -> None:
    """Write `predictions.txt`: name, true and predicted class of each cloud, separated by tabs, which no name holds."""
    names = clouds.names or [f"#{row}" for row in range(len(clouds))]
    rows = zip(names, clouds.labels, predictions, strict=True)
    lines = [f"{' '.join(name.split(chr(9)))}\t{label}\t{guess}\n" for name, label, guess in rows]
    text = "".join(["# cloud, true class, predicted class\n", *lines])
    write_atomic(folder / "predictions.txt", lambda file: file.write(text.encode("utf-8")))
