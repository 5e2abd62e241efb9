"""The optimism of selecting on the test set, from runs that tell both."""

import json
from pathlib import Path

import pytest

from benchmarks.studies.selection import main


def write_run(folder, accuracies, chosen):
    folder.mkdir(parents=True)
    config = {"model": {"NAME": "PointTransformer", "cls_dim": 10}, "dataset": {"train": {"NAME": "ModelNet10"}}}
    (folder / "config.yaml").write_text(json.dumps(config))
    rows = [{"kind": "epoch", "epoch": 0, "loss": 1.0}]
    rows += [{"kind": "val", "epoch": epoch, "accuracy": value} for epoch, value in enumerate(accuracies)]
    if chosen is not None:
        rows.append({"kind": "selected", "by": "held_out", "epoch": chosen, "accuracy": accuracies[chosen]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_optimism_is_what_the_best_epoch_has_over_the_selected_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/seed0"), [0.80, 0.90, 0.85], 2)
    write_run(Path("runs/seed1"), [0.80, 0.90, 0.85], 1)
    write_run(Path("runs/plain"), [0.80, 0.90, 0.85], None)
    assert main(["runs", "--out", "study.json"]) == 0
    study = json.loads(Path("study.json").read_text())["runs"]
    assert study["runs"] == ["seed0", "seed1"] and study["optimism, points"] == pytest.approx([5, 0])
    assert "| 2.50 [" in capsys.readouterr().out
    assert main(["runs/plain", "--out", "other.json"]) == 2 and "train with --held_out" in capsys.readouterr().err
