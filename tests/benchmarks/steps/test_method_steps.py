"""The step of every method is timed by running the program on its published recipe, or on a tiny one here."""

import contextlib
import json

import pytest

from benchmarks.steps import cases, method_steps
from datasets import DATASETS
from models import MODELS
from utils.config.load import load_config

PUBLISHED = {
    "pre-training": "cfgs/pre-training/{}.yaml",
    "fine-tuning": "cfgs/fine-tuning/{}/modelnet40.yaml",
    "segmentation": "cfgs/segmentation/{}/shapenet_part.yaml",
}


@pytest.mark.parametrize("method", cases.METHODS)
@pytest.mark.parametrize("task", cases.TASKS)
def test_the_published_recipe_is_what_is_timed(task, method, tmp_path):
    with contextlib.chdir(tmp_path):
        cases.write_recipe(method, 32, 64, task=task)
        config = load_config("recipe.yaml", models=MODELS, datasets=DATASETS)
    path = PUBLISHED[task].format(method)
    published = load_config(path, models=MODELS, datasets=DATASETS, overrides=["total_bs=32"])
    assert (config.total_bs, config.dataset.train.clouds) == (32, 64)
    assert config.optimizer == published.optimizer and config.scheduler == published.scheduler
    assert config.dataset.train.npoints == published.dataset.train.npoints
    assert (config.npoints, config.grad_norm_clip) == (published.npoints, published.grad_norm_clip)
    for key in (
        "NAME",
        "num_groups",
        "num_group",
        "encoder_dims",
        "transformer_config",
        "loss",
        "prop_widths",
        "cls_dim",
    ):
        assert getattr(config.model, key, None) == getattr(published.model, key, None)


@pytest.mark.parametrize(
    ("task", "method", "guided"),
    [
        ("pre-training", "point-m2ae", False),
        ("pre-training", "inter-mae", True),
        ("fine-tuning", "gm3d-point-m2ae", False),
        ("segmentation", "point-mae", False),
    ],
)
def test_a_case_says_how_fast_it_was_and_where_the_time_went(task, method, guided, monkeypatch, capsys):
    monkeypatch.setattr(cases, "STORED_POINTS", 256)
    case = {
        "task": task,
        "method": method,
        "precision": "fp32",
        "batch": 10,
        "clouds": 20,
        "device": "cpu",
        "flags": [],
        "size": "debug",
    }
    method_steps.main(["--case", json.dumps(case)])
    row = json.loads(capsys.readouterr().out)
    assert row["samples_per_second"] == pytest.approx(1e4 / row["step_ms"], rel=0.01)
    assert row["processor_ms"] > 0
    assert row["loss"] > 0 and row["memory_mb"] > 0 and row["gflop"] > 0 and 0 < row["utilisation"] < 1
    assert list(row["phase_ms"]) == list(method_steps.PHASES)
    spent = {phase for phase, value in row["phase_ms"].items() if value > 0}
    assert spent >= set(method_steps.PHASES) - {"guidance"} and ("guidance" in spent or not guided)
    assert "10.0 ms" in method_steps.describe(
        {"task": task, "method": method, "precision": "fp32", "batch": 10, **row, "step_ms": 10.0}
    )


def test_twice_the_clouds_are_twice_the_operations(monkeypatch):
    found = []
    monkeypatch.setattr(method_steps, "run_program", lambda argv: {"seconds": 1.0, "memory_mb": 1.0, "loss": 1.0})
    for batch in (10, 20):
        how = {"precision": "fp32", "clouds": 20, "device": "cpu", "flags": [], "size": "debug"}
        found.append(method_steps.measure(method="point-mae", batch=batch, **how)["gflop"])
    assert found[1] == pytest.approx(2 * found[0], rel=0.2, abs=0.2)


def test_a_case_that_fails_says_why(monkeypatch):
    row = method_steps.alone({"method": "point-mae"}, 60)
    assert "missing" in row["error"]
    assert "missing" in method_steps.describe(
        {"task": "fine-tuning", "method": "point-mae", "precision": "fp32", "batch": 1, **row}
    )
    for flag in ("--methods", "--tasks"):
        with pytest.raises(SystemExit):
            method_steps.main([flag, "unknown"])


def test_two_checkouts_are_timed_in_turn(tmp_path, capsys, monkeypatch):
    """Each case first in the other one, then in this one, in processes of their own."""
    calls = []
    monkeypatch.setattr(
        method_steps, "alone", lambda case, limit, root: calls.append((case["task"], root)) or {"error": "no"}
    )
    out = tmp_path / "steps.json"
    method_steps.main(["--methods", "point-mae", "--precisions", "fp32", "--tasks", "pre-training,segmentation",
                       "--against", str(tmp_path), "--out", str(out)])  # fmt: skip
    assert calls == [
        (task, root) for task in ("pre-training", "segmentation") for root in (tmp_path, method_steps.ROOT)
    ]
    assert [row["tree"] for row in json.loads(out.read_text())["rows"]] == ["other", "this"] * 2
    assert capsys.readouterr().out.splitlines()[0].startswith("other checkout: pre-training, point-mae")
