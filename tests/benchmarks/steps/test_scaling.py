"""Scaling is measured on the program itself, with the same global batch for every number of processes."""

import json

import pytest

from benchmarks.steps import scaling

TINY = ["--method", "point-mae", "--size", "debug", "--batch", "10", "--steps", "2", "--rounds", "1"]


def test_one_process_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.steps.cases.STORED_POINTS", 256)
    path = tmp_path / "scaling.json"
    scaling.main([*TINY, "--processes", "1", "--out", str(path)])
    report = json.loads(path.read_text())
    assert report["samples_per_second"]["1"][0] > 0 and report["batch"] == 10
    assert "| 1 | " in capsys.readouterr().out


def test_the_table_compares_medians():
    text = scaling.table({1: [10.0, 30.0, 20.0], 2: [30.0, 36.0, 90.0]})
    assert "| 1 | 20.0 | 1.00 |" in text and "| 2 | 36.0 | 1.80 |" in text


def test_a_batch_that_cannot_be_shared_is_refused(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--processes", "1,3", "--batch", "32"])
    assert "3 does not divide the batch of 32" in capsys.readouterr().err


def test_a_run_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(scaling, "write_recipe", lambda *_: None)
    with pytest.raises(SystemExit, match=r"1 processes: .*recipe\.yaml"):
        scaling.main([*TINY, "--processes", "1"])
