"""What a sweep found as a study, next to published differences."""

import json
from pathlib import Path

import pytest

from benchmarks.studies.ablation import PUBLISHED, agreement, main, table
from tools.launch import load_recipe
from utils.config.merge import to_dict

ROOT = Path(__file__).parent.parent.parent.parent
FOLDER = ROOT / "cfgs" / "ablation" / "point-m2ae" / "modelnet10-mini"


def write_run(name, accuracy, seed):
    """Write a complete run of a row as the main program leaves it."""
    folder = Path("experiments/ablation/point-m2ae/modelnet10-mini", name, "sweep", f"seed{seed}")
    folder.mkdir(parents=True)
    config = to_dict(load_recipe(FOLDER / f"{name}.yaml", overrides=[f"seed={seed}"]))
    (folder / "config.yaml").write_text(json.dumps(config))
    last = config["max_epoch"] - 1
    rows = [
        {"kind": "svm", "epoch": None, "accuracy": 0.5},
        *({"kind": "epoch", "epoch": epoch, "loss": 1.0, "seconds": 60.0} for epoch in range(last + 1)),
        {"kind": "svm", "epoch": last, "accuracy": accuracy, "chosen_accuracy": accuracy + 0.1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text("{}")


def test_study_of_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write_run("base", 0.70 + seed / 100, seed)
        write_run("no-multi-scale-mask", 0.60 + seed / 100, seed)
    assert main([str(FOLDER), "--out", "study.json"]) == 0
    study = json.loads(Path("study.json").read_text())
    assert set(study["rows"]) == {"base", "no-multi-scale-mask"}  # the others have no runs
    assert (
        study["rows"]["base"]["chosen"] == pytest.approx([80, 81, 82])
        and study["rows"]["base"]["untrained"] == [50] * 3
    )
    base, other = capsys.readouterr().out.splitlines()[2:]
    assert base.startswith("| base | 81.00") and "| -10.00 | -10.00 to -10.00 | -4.5 | same sign |" in other


def test_a_sweep_without_its_base_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(FOLDER), "--out", "study.json"]) == 2
    assert "the base has not all seeds" in capsys.readouterr().err and not Path("study.json").exists()


def test_published_rows_are_rows_of_the_ablation():
    names = {path.stem for path in (ROOT / "cfgs" / "ablation" / "point-m2ae").glob("*.yaml")}
    assert set(PUBLISHED) <= names


def test_reading_of_a_difference():
    assert (
        agreement(-3, -1, -4.5) == "same sign"
        and agreement(-3, -1, 0.4) == "other sign"
        and agreement(-1, 2, -4.5) == "open"
    )
    rows = {"base": {"last": [1.0, 2.0]}, "mine": {"last": [2.0, 4.0]}}
    assert "| mine | 3.00" in table(rows, "last").splitlines()[2]
