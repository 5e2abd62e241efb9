"""Features before and after pre-training: paired, on both sets, and written with their spread."""

import json

import pytest

import main
from benchmarks.studies import frozen
from tests.commands import ROOT
from tests.models.test_contract import build

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_runs_are_compared_with_what_they_began_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frozen, "BUILT_IN", {"NAME": "Synthetic", "N_POINTS": 256, "clouds": 40})
    recipe = str(ROOT / "cfgs" / "debug" / "point-mae.yaml")
    sets = ["max_epoch=0", "dataset.train.clouds=64", "dataset.svm.train.clouds=80", "dataset.svm.test.clouds=40"]
    sets = [part for setting in sets for part in ("--set", setting)]
    assert main.main(["--config", recipe, "--exp_name", "a", "--seeds", "0,1", "--device", "cpu", *sets]) == 0
    frozen.main(["tiny=experiments/debug/point-mae/a", "--out", "found.json", "--section", "frozen"])
    found = json.loads((tmp_path / "found.json").read_text())["frozen"]["tiny"]
    assert "Synthetic, linear SVM, C 0.01" in found
    for columns in found.values():
        before, after = columns["untrained"]["values"], columns["pre-trained"]["values"]
        assert len(before) == len(after) == 2
        assert columns["difference"]["values"] == [round(b - a, 3) for a, b in zip(before, after, strict=True)]
    assert any(columns["difference"]["values"] != [0, 0] for columns in found.values())
    monkeypatch.setattr(frozen, "build_model", None)  # a second time, what is known is read
    frozen.main(["tiny=experiments/debug/point-mae/a", "--out", "again.json", "--section", "frozen"])
    assert json.loads((tmp_path / "again.json").read_text())["frozen"]["tiny"] == found
    assert "| tiny | Synthetic, nearest neighbours |" in capsys.readouterr().out


def test_published_C():
    model = build("Point_JEPA")
    assert (frozen.fixed_C(model, False), frozen.fixed_C(model, True)) == (0.01, 0.012)
    assert frozen.fixed_C(build("Point_MAE"), True) == 0.01
