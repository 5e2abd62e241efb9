"""What the folders of runs hold, whatever state each is in: task, data, seed, scores, time, configuration."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models import MODELS
from tools.report.runlog import RunLog, curve, is_untrained, number, read_metrics
from utils.config.yaml import read_yaml
from utils.errors import UserError

# Keys that a run fills in, or that only say where something is or how often it is written.
NOT_COMPARED = (
    "seed",
    "class_names",
    "part_names",
    "category_parts",
    "imports",
    "log_every",
    "keep_from",
    "keep_every",
)
PLACES = ("DATA_PATH", "PC_PATH", "DATA_DIR", "ROOT")
ARROW = " → "  # from the set that is trained on to the one that is evaluated on
# Rows that evaluate an epoch -> the scores in them and what they are called; the first is what runs are compared by.
SCORES = {
    "parts": {"instance_miou": "instance mIoU", "class_miou": "class mIoU"},
    "detection": {"ap25": "AP25", "ap50": "AP50"},
    "val": {"accuracy": "accuracy"},
    "svm": {"accuracy": "linear SVM"},
}


@dataclass(frozen=True)
class Run:
    """One run; scores are percent on the test set, None where they are not known.

    Args:
        score: what the scores are.
        best: that of the epoch that is best on the test set itself.
        chosen: the last epoch's linear SVM with C from cross-validation on the training features.
        selected: that of the epoch that held-out clouds selected.
        held_out: that epoch's score on the held-out clouds.
        untrained: the linear SVM on random weights.
        others: further scores of the last epoch, or of the selected one where only that was evaluated.
        keys: the configuration, by dotted key.
        note: what is missing; empty for a complete run.
    """

    folder: Path
    method: str
    task: str
    data: str
    seed: int | None
    score: str = ""
    last: float | None = None
    best: float | None = None
    chosen: float | None = None
    selected: float | None = None
    held_out: float | None = None
    untrained: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    minutes: float | None = None
    keys: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    log: RunLog = field(default_factory=RunLog, repr=False)

    @property
    def evaluated_on(self) -> str:
        """Name the set that the scores are from."""
        return self.data.rpartition(ARROW)[2]


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Return the runs below a folder, in the order of their paths, and what looks like one but is not, one line each.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give one with runs below it, such as experiments")
    runs, others = [], []
    for path in _candidates(folder):
        try:
            runs.append(read_run(path))
        except UserError as error:
            others.append(str(error))
    return runs, others


def read_run(folder: Path) -> Run:
    """Read one run.

    Raises:
        UserError: the folder has no configuration of this program.
    """
    config = read_yaml(folder / "config.yaml")
    model = config.get("model")
    if (
        not isinstance(model, Mapping)
        or not isinstance(model.get("NAME"), str)
        or not isinstance(config.get("dataset"), Mapping)
    ):
        raise UserError(f"{folder / 'config.yaml'}: is of another program, it has no model.NAME and dataset; left out")
    name, log = model["NAME"], read_metrics(folder / "metrics.jsonl")
    task = _task(config)
    seed = config.get("seed")
    return Run(
        folder=folder,
        method=getattr(MODELS.entry(name).target, "method", name) if name in MODELS else name,
        task=task,
        data=_data(config, log),
        seed=seed if isinstance(seed, int) else None,
        epochs=len(log.epochs),
        minutes=_minutes(log),
        keys=dict(flat_keys(config)),
        note=_note(config, log),
        log=log,
        **_scores(log),
    )


def differing(runs: list[Run]) -> dict[Path, str]:
    """Return for each run the keys, with their values, in which the runs of its task differ."""
    shown: dict[Path, str] = {}
    for task in {run.task for run in runs}:
        own = [run for run in runs if run.task == task]
        names = list(dict.fromkeys(key for run in own for key in run.keys))
        odd = [key for key in names if len({repr(run.keys.get(key)) for run in own}) > 1]
        # What a base file or a NAME decides as a whole is said once.
        odd = [key for key in odd if not any(f"{key.rpartition('.')[0]}.NAME" == other != key for other in odd)]
        for run in own:
            shown[run.folder] = ", ".join(f"{key}={_short(run.keys[key])}" for key in odd if key in run.keys)
    return shown


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield folders that hold a configuration; those that evaluations write lie in the run and are not searched."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        if "config.yaml" in files:
            yield Path(path)


def _task(config: Mapping) -> str:
    model, train = config["model"], config["dataset"].get("train")
    if "num_parts" in model:
        return "part segmentation"
    if "nqueries" in model:
        return "detection"
    if "cls_dim" in model:
        return "few-shot" if isinstance(train, Mapping) and {"way", "shot", "fold"} <= set(train) else "fine-tuning"
    return "pre-training"


def _data(config: Mapping, log: RunLog) -> str:
    """Name the set that is trained on, and the one that is evaluated on where that is another."""
    train = config["dataset"].get("train")
    name = str(train.get("NAME", "")) if isinstance(train, Mapping) else ""
    rows = [*log.svm, *log.val, *log.parts, *log.detection, *log.selected]
    data = next((str(row["data"]) for row in rows if row.get("data")), name)
    return name if data == name else f"{name}{ARROW}{data}"


def _scores(log: RunLog) -> dict:
    kind = next((kind for kind in SCORES if getattr(log, kind)), None)
    rows = getattr(log, kind) if kind else []
    if kind is None:
        row = next(iter(log.selected), None)
        if row is None:
            return {}
        kind = "svm" if "C" in row else "parts" if "instance_miou" in row else "val"
    (key, name), *others = SCORES[kind].items()
    values = curve(rows, key)[1]
    untrained = [value for row in rows if is_untrained(row) and (value := number(row, key)) is not None]
    trained = [row for row in rows if not is_untrained(row)][-1:]
    chosen = [value for row in trained if (value := number(row, "chosen_accuracy")) is not None]
    selected = [value for row in log.selected if (value := number(row, key)) is not None]
    epoch = log.selected[-1].get("epoch") if log.selected else None
    held_out = [value for row in log.held_out if row.get("epoch") == epoch and (value := number(row, key)) is not None]
    found = {
        "last": values[-1:],
        "best": [max(values)] if len(values) > 1 else [],
        "chosen": chosen,
        "selected": selected[-1:],
        "held_out": held_out[-1:],
        "untrained": untrained[-1:],
    }
    last = (trained or log.selected)[-1:]
    further = {
        other: 100 * value for row in last for known, other in others if (value := number(row, known)) is not None
    }
    scores = {label: 100 * value for label, some in found.items() for value in some}
    return {"score": name, "others": further, **scores}


def _minutes(log: RunLog) -> float | None:
    """Return the time of training and evaluation together."""
    rows = [*log.epochs, *log.svm, *log.val, *log.parts, *log.detection, *log.held_out, *log.selected]
    seconds = [value for row in rows if (value := number(row, "seconds")) is not None]
    return math.fsum(seconds) / 60 if seconds else None


def _note(config: Mapping, log: RunLog) -> str:
    if not (log.epochs or log.steps):
        return "no metrics"
    last = config.get("max_epoch")
    wanted = None if not isinstance(last, int) else last + bool(config.get("max_epoch_inclusive", True))
    return f"{len(log.epochs)} of {wanted} epochs" if wanted is not None and len(log.epochs) < wanted else ""


def flat_keys(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield dotted key and value of a configuration, without what no two runs are compared by."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in NOT_COMPARED:
            yield from flat_keys(value, f"{prefix}{key}.")
        elif key not in NOT_COMPARED and key not in PLACES and not str(key).endswith("sha256"):
            yield f"{prefix}{key}", value


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
