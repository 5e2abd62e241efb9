"""The benchmark of attention measures two sides that agree, and says so when they do not."""

import json

import pytest

from benchmarks.ops import attention


def test_writes_a_row_a_shape_and_precision(tmp_path, capsys):
    out = tmp_path / "new" / "attention.json"
    attention.main(["--rounds", "1", "--batch", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(attention.SHAPES) * len(attention.DTYPES) == len(capsys.readouterr().out.splitlines())
    for row in rows:
        assert row["relative_difference"] <= attention.TOLERANCE[row["precision"]]
        for way in ("forward", "backward"):
            assert row[way]["ours_ms"] > 0 and row[way]["ratio"] > 0


def test_sides_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setitem(attention.SIDES, "ours", lambda given: attention.fused(given) * 1.1)
    with pytest.raises(SystemExit, match=r"Point-M2AE, finest scale, fp32: the sides differ by 1\.0e-01"):
        attention.main(["--rounds", "1", "--batch", "1"])


def test_bad_arguments():
    with pytest.raises(SystemExit):
        attention.main(["--rounds", "0"])
