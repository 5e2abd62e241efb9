"""The cost of the image guidance: both sides agree and are measured, and disagreement is an error."""

import json

import pytest
import torch

from benchmarks.steps import i2p_mae as timed
from models import i2p_mae
from models.images.projection import lift
from tests.models.test_i2p_mae import TAUGHT, TEACHER

KEYS = {key: value for key, value in TAUGHT.items() if key not in ("NAME", "teacher")}


@pytest.fixture(autouse=True)
def sparse_again():
    yield
    i2p_mae.lift = lift


def test_both_sides_compute_the_same(monkeypatch):
    monkeypatch.setattr(timed, "POINTS", 200)
    rounds = [timed.run_side(side, 2, 2, TEACHER, KEYS) for side in timed.SIDES]
    sides = timed.summarise(rounds, 2)
    assert sides["sparse"]["loss"] == pytest.approx(sides["dense"]["loss"], rel=1e-5)
    assert all(side["samples_per_cpu_second"] > 0 and side["peak_mb"] > 0 for side in sides.values())
    assert "| seconds: lift |" in timed.table(sides, 2)
    rounds[0]["loss"] *= 1.01
    with pytest.raises(SystemExit, match="the sides disagree"):
        timed.summarise(rounds, 2)


def test_dense_reading_is_bicubic_enlargement():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    pixels = torch.tensor([[[0, 0], [31, 31], [16, 16]]])
    torch.testing.assert_close(timed.dense_lift(maps, pixels, 32), lift(maps, pixels, 32))


def test_one_side_prints_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(timed, "POINTS", 200)
    keys = ["--teacher", json.dumps(TEACHER), "--model", json.dumps(KEYS)]
    timed.main(["--side", "sparse", "--batch", "2", "--steps", "2", *keys])
    found = json.loads(capsys.readouterr().out)
    assert found["side"] == "sparse" and len(found["steps"]) == 1 and set(found["steps"][0]) == set(timed.PARTS)
