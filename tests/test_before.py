"""A run that the version before the redesign was stopped in, in the middle of an epoch, goes on here to the same numbers."""

import json
import shutil
from pathlib import Path

import pytest

import main
from models import build_model, load_weights
from tests.commands import rows
from utils.files import read_checkpoint

BEFORE = Path(__file__).parent / "fixtures" / "before"
# Sums of weights may differ by rounding, of which Adam makes larger steps where gradients are nearly zero, as in small biases.
LOSSES, WEIGHTS, SMALL = 1e-5, 1e-3, 2e-3


def test_an_older_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "older").mkdir()
    shutil.copy(BEFORE / "recipe.yaml", tmp_path / "older" / "run.yaml")
    folder = Path("experiments/older/run/a")
    folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "ckpt-last.pth"):
        shutil.copy(BEFORE / name, folder / name)
    assert main.main(["--config", "older/run.yaml", "--exp_name", "a", "--device", "cpu", "--resume"]) == 0
    expected = json.loads((BEFORE / "expected.json").read_text())
    found = rows(folder, "step", "epoch", "svm")
    assert [set(row) for row in found] == [set(row) for row in expected["rows"]]
    for row, other in zip(found, expected["rows"], strict=True):
        assert (row["kind"], row["epoch"]) == (other["kind"], other["epoch"])
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=LOSSES)
        assert row.get("lr") == other.get("lr") and row.get("step") == other.get("step")
    saved = read_checkpoint(folder / "ckpt-last.pth")["base_model"]
    sums = {key: value.double().abs().sum().item() for key, value in saved.items() if value.is_floating_point()}
    assert sums == pytest.approx(expected["weights"], rel=WEIGHTS, abs=SMALL)


def test_an_older_checkpoint_loads():
    saved = read_checkpoint(BEFORE / "ckpt-last.pth")
    model = build_model(saved["config"]["model"])
    assert not load_weights(model, BEFORE / "ckpt-last.pth").missing
