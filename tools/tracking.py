"""Send the rows of `metrics.jsonl` to a service that tracks experiments: while a run trains (`--track`), or afterwards.

    python main.py --config cfgs/debug/point-m2ae.yaml --exp_name try --track wandb
    python -m tools.tracking experiments/debug/point-m2ae/try --track mlflow

The services have their own settings (`WANDB_PROJECT`, `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI` ...); none of them is a requirement. What
one of them cannot take never stops a run.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tools.summary_runs import flat_keys
from utils.config.cli import TRACKERS
from utils.config.yaml import read_yaml
from utils.errors import UserError, run_command, say
from utils.metrics_log import read_rows

PROJECT = "m2ae"
PLACES = ("kind", "epoch", "step")  # keys of a row that are no metrics
_LOG = logging.getLogger("m2ae.tracking")


class Service(Protocol):
    """What a service does for a run."""

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Take numbers by name; `position` counts up over the rows of a run."""

    def close(self) -> None:
        """Finish the run."""


class WandbService:
    """wandb, and trackio, which has the same functions."""

    def __init__(self, module: ModuleType, name: str, config: Mapping[str, Any], folder: Path):
        where = {"dir": str(folder)} if module.__name__ == "wandb" else {}
        self.module = module
        module.init(project=PROJECT, name=name, config=dict(config), **where)

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Take numbers by name; each call is a step of its own."""
        self.module.log(dict(values))

    def close(self) -> None:
        """Finish the run."""
        self.module.finish()


class MlflowService:
    """mlflow."""

    MOST = 500  # characters of a parameter

    def __init__(self, module: ModuleType, name: str, config: Mapping[str, Any], folder: Path):
        self.module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=name)
        module.log_params({key: str(value)[: self.MOST] for key, value in config.items()})

    def log(self, values: Mapping[str, float], position: int) -> None:
        """Take numbers by name."""
        self.module.log_metrics(dict(values), step=position)

    def close(self) -> None:
        """Finish the run."""
        self.module.end_run()


SERVICES = {"wandb": WandbService, "trackio": WandbService, "mlflow": MlflowService}


class Tracker:
    """Follow the rows of a run: every number of a row becomes "<kind>/<key>". Errors of the service end the tracking, not the run.

    Raises:
        UserError: the service is not installed.
    """

    def __init__(self, service: str, folder: Path, config: Mapping):
        self.name, self.position = service, 0
        self.service: Service | None = self._open(folder, dict(flat_keys(config)))

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Send a row."""
        if self.service is None:
            return
        kind = row.get("kind", "row")
        values = {
            f"{kind}/{key}": float(value) for key, value in row.items() if key not in PLACES and _is_number(value)
        }
        for key in ("epoch", "step"):
            if _is_number(row.get(key)):
                values[f"{kind}/{key}"] = float(row[key])
        self._try(lambda service: service.log(values, self.position))
        self.position += 1

    def close(self) -> None:
        """Finish the run."""
        self._try(lambda service: service.close())
        self.service = None

    def _open(self, folder: Path, config: Mapping[str, Any]) -> Service | None:
        try:
            module = import_module(self.name)
        except ImportError as error:
            raise UserError(
                f"--track {self.name}: is not installed; pip install {self.name}, or leave it out"
            ) from error
        try:
            return SERVICES[self.name](module, folder.as_posix(), config, folder)
        except Exception as error:  # whatever a service raises
            self._give_up(error)
            return None

    def _try(self, action) -> None:
        if self.service is None:
            return
        try:
            action(self.service)
        except Exception as error:  # whatever a service raises
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        _LOG.warning("--track %s: %s: %s; the run goes on without it", self.name, type(error).__name__, error)
        self.service = None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def main(arguments: Sequence[str] | None = None) -> int:
    """Send a run that is there; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: _send(args.run, args.track))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tracking", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--track", choices=TRACKERS, required=True, help="where to")
    return parser


def _send(folder: Path, service: str) -> None:
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder / 'metrics.jsonl'}: has no rows; give the folder of a run")
    tracker = Tracker(service, folder, read_yaml(folder / "config.yaml"))
    for row in rows:
        tracker(row)
    if tracker.service is None:
        raise UserError(f"--track {service}: took {tracker.position} of {len(rows)} rows; see the message above")
    tracker.close()
    say(f"{len(rows)} rows of {folder} sent to {service}")


if __name__ == "__main__":
    sys.exit(main())
