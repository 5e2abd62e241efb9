"""Statistics over runs: known values, and what cannot be tested."""

import builtins
import math

import numpy as np
import pytest

from tools.statistics import check_pairs, compare_pairs, critical_difference_plot, interval, rank
from utils.errors import UserError


def seeds(*values):
    return {f"seed{number}": value for number, value in enumerate(values)}


def test_interval_is_that_of_students_t():
    """Mean 92, standard deviation 1 of three runs: 4.3027 (t at 0.975, two degrees) times 1 / sqrt(3)."""
    found = interval([91.0, 92.0, 93.0])
    assert found.mean == 92 and found.high - 92 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-4)
    assert str(interval([90.0])) == "90.00" and interval([90.0, 90.0]).low == 90


def test_paired_differences():
    found = compare_pairs(seeds(92.0, 93.0, 91.5, 92.5, 94.0, 90.0), seeds(91.0, 91.5, 91.0, 92.0, 92.0, 89.0))
    assert found.differences == [1.0, 1.5, 0.5, 0.5, 2.0, 1.0]
    assert found.wilcoxon == pytest.approx(0.03125)  # all six of one sign: 2 / 2 ** 6
    assert 0.5 < found.bootstrap.low < found.interval.mean < found.bootstrap.high < 2
    again = compare_pairs(seeds(92.0, 93.0, 91.5, 92.5, 94.0, 90.0), seeds(91.0, 91.5, 91.0, 92.0, 92.0, 89.0))
    assert again == found  # nothing but the values decides
    equal = compare_pairs(seeds(1.0, 2.0), seeds(1.0, 2.0))
    assert equal.wilcoxon is None and equal.interval.low == equal.interval.high == 0


def test_pairs_of_other_seeds_are_an_error():
    with pytest.raises(UserError, match="base has seed0, seed1 and row has seed0; both need the same seeds"):
        compare_pairs(seeds(1.0), seeds(1.0, 2.0))
    with pytest.raises(UserError, match="b has none"):
        check_pairs({"a": seeds(1.0), "b": {}})


def test_ranking_of_several_methods():
    pytest.importorskip("scikit_posthocs")
    draw = np.random.default_rng(0)
    base = draw.normal(80, 5, 10)
    rows = {
        name: dict(enumerate(base + gain + draw.normal(0, 0.1, 10))) for name, gain in (("a", 0), ("b", 2), ("c", 2))
    }
    found = rank(rows)
    assert found.ranks["a"] == 3 and found.ranks["b"] + found.ranks["c"] == pytest.approx(3)
    assert found.friedman < 0.001 and found.nemenyi["a"]["b"] < 0.05 < found.nemenyi["b"]["c"]
    picture = critical_difference_plot(found)
    assert picture.startswith("<svg") and "(3) a" in picture


def test_friedman_needs_three_methods():
    with pytest.raises(UserError, match="needs three methods"):
        rank({"a": seeds(1.0, 2.0), "b": seeds(1.0, 2.0)})


def test_without_the_library(monkeypatch):
    original = builtins.__import__

    def absent(name, *args):
        if name == "scikit_posthocs":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match="pip install"):
        rank({name: seeds(1.0, 2.0) for name in "abc"})
