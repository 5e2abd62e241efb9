"""Two checkouts compared: the order of turns, the ratio, and both sides of this very checkout."""

import json

import pytest

from benchmarks.steps import against


class Fake:
    def __init__(self, name, times, log):
        self.name, self.times, self.log = name, iter(times), log

    def time(self, case):
        self.log.append(self.name)
        return [next(self.times), 1.5]


def test_rounds_alternate_and_the_ratio_is_their_median():
    log = []
    sides = {"other": Fake("other", [99, 10, 20, 90], log), "this": Fake("this", [99, 5, 20, 30], log)}
    row = against.measure("a case", sides, rounds=3)
    assert log == ["other", "this", "other", "this", "this", "other", "other", "this"]
    assert row == {
        "case": "a case", "ratio": 2.0, "other_ms": 20, "this_ms": 20, "loss": {"other": 1.5, "this": 1.5},
    }  # fmt: skip
    assert "| a case | 20 | 20 | 2.000 |" in against.table([row])


@pytest.mark.slow
def test_a_checkout_is_compared_with_itself(tmp_path):
    out = tmp_path / "ratios.json"
    against.main(
        [str(against.ROOT), "--rounds", "1", "--batch", "2", "--cases", "Point_MAE,three-nn", "--out", str(out)]
    )
    step, row = json.loads(out.read_text())["rows"]
    assert step["case"] == "Point_MAE, fp32" and step["loss"]["this"] == step["loss"]["other"] > 0
    assert row["case"] == "three-nn" and 0.2 < row["ratio"] < 5 and "loss" not in row
    with pytest.raises(SystemExit, match="ended with status"):
        against.Worker(tmp_path, "fp32", 1)
