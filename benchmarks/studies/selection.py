"""How optimistic it is to select the epoch on the test set: the same runs, selected there and on held-out clouds.

    python main.py --config cfgs/fine-tuning/point-mae/modelnet10-tiny.yaml --scratch_model --exp_name both --seeds 0,1,2 \\
        --held_out 0.1
    python -m benchmarks.studies.selection experiments/fine-tuning/point-mae/modelnet10-tiny/both \\
        --out benchmarks/results/selection.json

Every run below the folders that was trained with `--held_out` and the published selection counts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies.compare import write_study
from tools.report.tables import FORMS
from tools.statistics import interval
from tools.summary_runs import Run, find_runs
from utils.errors import UserError, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the study of the command line, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the study")
    args = parser.parse_args(arguments)
    return run_command(lambda: _run(args.folders, args.out))


def _run(folders: Sequence[Path], out: Path) -> None:
    runs = {folder.as_posix(): [run for run in find_runs(folder)[0] if _tells_both(run)] for folder in folders}
    empty = [folder for folder, found in runs.items() if not found]
    if empty:
        raise UserError(
            f"{empty[0]}: has no run with both selections; train with --held_out 0.1 and --select best_test"
        )
    study = {folder: study_of(found) for folder, found in runs.items()}
    write_study(out, study)
    sys.stdout.write(table(study))


def _tells_both(run: Run) -> bool:
    return None not in (run.best, run.last, run.selected)


def study_of(runs: Sequence[Run]) -> dict[str, list]:
    """Return the scores of runs, each a list with one number a run."""
    return {
        "runs": [run.folder.name for run in runs],
        "best epoch (selected on the test set)": [run.best for run in runs],
        "epoch selected on held-out clouds": [run.selected for run in runs],
        "last epoch": [run.last for run in runs],
        "optimism, points": [run.best - run.selected for run in runs],
    }


def table(study: dict[str, dict[str, list]]) -> str:
    """Return mean and 95 % interval of each score in Markdown."""
    names = [name for name in next(iter(study.values())) if name != "runs"]
    cells = [
        [folder, str(len(found["runs"])), *(str(interval(found[name])) for name in names)]
        for folder, found in study.items()
    ]
    return FORMS["markdown"](["runs of", "runs", *names], cells)


if __name__ == "__main__":
    sys.exit(main())
