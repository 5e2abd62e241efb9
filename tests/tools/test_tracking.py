"""Services that track experiments: what a run sends to each, and that none of them stops a run."""

import importlib.machinery
import json
import sys
from types import ModuleType

import pytest

from tools import tracking
from utils.config.cli import parse_args
from utils.errors import UserError
from utils.metrics_log import MetricsWriter

ROWS = [
    {"kind": "epoch", "epoch": 0, "loss": 0.5, "lr": 1e-3},
    {"kind": "val", "epoch": 1, "data": "ModelNet", "accuracy": 0.9, "best": True},
]


@pytest.fixture
def service(request, monkeypatch):
    """Stand in for a service; returns what it was asked to do."""
    module, asked = ModuleType(request.param), []
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    for name in ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(module, name, lambda *args, _name=name, **keys: asked.append((_name, args, keys)))
    monkeypatch.setitem(sys.modules, request.param, module)
    return module, asked


def run_folder(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"model": {"NAME": "Point_MAE", "loss": "cdl2"}, "seed": 3}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.mark.parametrize("service", ["wandb", "trackio"], indirect=True)
def test_wandb_and_trackio_get_every_number(service, tmp_path):
    module, asked = service
    assert tracking.main([str(run_folder(tmp_path)), "--track", module.__name__]) == 0
    (start, _, keys), first, second, end = asked
    assert start == "init" and keys["project"] == "m2ae" and keys["config"]["model.loss"] == "cdl2"
    assert ("dir" in keys) == (module.__name__ == "wandb")
    assert first == ("log", ({"epoch/loss": 0.5, "epoch/lr": 1e-3, "epoch/epoch": 0.0},), {})
    assert second == ("log", ({"val/accuracy": 0.9, "val/epoch": 1.0},), {}) and end[0] == "finish"


@pytest.mark.parametrize("service", ["mlflow"], indirect=True)
def test_mlflow_gets_parameters_and_metrics(service, tmp_path):
    _, asked = service
    assert tracking.main([str(run_folder(tmp_path)), "--track", "mlflow"]) == 0
    assert [name for name, *_ in asked] == [
        "set_experiment",
        "start_run",
        "log_params",
        "log_metrics",
        "log_metrics",
        "end_run",
    ]
    assert asked[2][1][0]["model.NAME"] == "Point_MAE" and asked[4][2] == {"step": 1}


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_rows_are_sent_as_they_are_written(service, tmp_path):
    _, asked = service
    with MetricsWriter(tmp_path) as writer:
        writer.follower = tracking.Tracker("wandb", tmp_path, {})
        writer.write({"kind": "epoch", "epoch": 4, "loss": float("nan"), "seconds": 2.0})
    assert asked[-1][1][0] == {"epoch/seconds": 2.0, "epoch/epoch": 4.0}


@pytest.mark.parametrize("service", ["wandb"], indirect=True)
def test_a_service_that_fails_does_not_stop_the_run(service, tmp_path, caplog):
    module, _ = service

    def fail(values):
        raise RuntimeError("no network")

    module.log = fail
    with MetricsWriter(tmp_path) as writer:
        writer.follower = tracking.Tracker("wandb", tmp_path, {})
        writer.write(ROWS[0])
        writer.write(ROWS[1])
    assert caplog.text.count("no network; the run goes on without it") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert tracking.main([str(run_folder(tmp_path)), "--track", "wandb"]) == 2


def test_a_service_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr("utils.config.cli.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track mlflow: is not installed; pip install mlflow"):
        parse_args(["--config", "x.yaml", "--track", "mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="is not installed"):
        tracking.Tracker("mlflow", tmp_path, {})
