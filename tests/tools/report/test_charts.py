"""Charts: ticks, ranges, thinning, and what is drawn."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.report.charts import Level, Mark, Series, line_chart
from tools.report.runlog import curve, step_curve, svm_curves
from tools.report.scales import Scale, padded_range, thin_out, tick_text

FINITE = st.floats(-1e12, 1e12)


def test_ticks_are_round():
    scale = Scale(0.0, 1.0, 0, 100)
    assert [tick_text(value, 0.2) for value in scale.ticks(5)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert Scale(0, 3, 0, 1).ticks(8, whole=True) == [0, 1, 2, 3]
    assert Scale(0.01, 100, 0, 1, log=True).ticks(5) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert tick_text(0.00025, 0.00005) == "0.00025"


@given(st.lists(FINITE, min_size=1, max_size=30))
def test_any_values_fit_their_axis(values):
    low, high = padded_range(values, log=False)
    scale = Scale(low, high, 200, 10)
    assert low <= min(values) <= max(values) <= high
    assert all(10 - 1e-6 <= scale(value) <= 200 + 1e-6 for value in values)
    assert len(scale.ticks(6)) <= 8


@given(st.lists(FINITE, min_size=1, max_size=80))
def test_thinning_keeps_order_and_extremes(ys):
    xs, kept = thin_out(range(len(ys)), ys, limit=10)
    assert len(xs) <= 12
    assert xs == sorted(set(xs)) and kept == [ys[x] for x in xs]
    assert (min(kept), max(kept)) == (min(ys), max(ys))


def numbers(page: str, pattern: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, page)]


@pytest.mark.parametrize("count", [1, 3, 50])
def test_curve_is_drawn_inside_the_frame(count):
    ys = [5.0 - i / 10 for i in range(count)]
    series = [Series("loss", list(range(count)), ys)]
    page = line_chart(series, title="t", levels=[Level("floor", 0.5)], marks=[Mark(0, 5, "top")])
    assert page.count("<polyline") == (count > 1)
    assert page.count(' dot"') == (count if count <= 40 else 0)
    drawn = numbers(page, r'cy="([-\d.]+)"') + numbers(page, r",([-\d.]+)[ \"]")
    assert drawn and all(0 < y < 300 for y in drawn)


def test_a_wild_step_does_not_flatten_the_curve():
    steps = Series("steps", list(range(1000)), [1.0 + (i % 7) / 7 for i in range(999)] + [1e6], thin=True)
    page = line_chart([steps], title="t")
    assert "1,000,000" not in re.sub("<script.*?</script>", "", page)


def test_logarithmic_only_when_it_helps():
    wide, narrow, signed = ([100.0, 1.0, 0.1], [3.0, 2.0, 1.0], [100.0, 1.0, -1.0])
    series = [Series("s", [0, 1, 2], ys) for ys in (wide, narrow, signed)]
    drawn = [line_chart([s], title="t", y_label="loss", log_y=None) for s in series]
    assert ["(log)" in page for page in drawn] == [True, False, False]


def test_nothing_recorded():
    assert "Nothing recorded" in line_chart([Series("s", [], [])], title="t")


def test_step_positions_surround_their_epoch():
    rows = [{"epoch": epoch, "step": step, "loss": step} for epoch in (0, 1) for step in (0, 10, 20, 30)][:6]
    xs, ys = step_curve(rows[::-1], "loss")
    assert xs == [-0.375, -0.125, 0.125, 0.375, 0.625, 0.875] and ys == [0, 10, 20, 30, 0, 10]


def test_curves_leave_out_what_is_no_number():
    rows = [{"epoch": 2, "loss": 1}, {"epoch": 1, "loss": float("nan")}, {"epoch": 0, "loss": True}]
    rows += [{"epoch": None, "loss": 1}, {"loss": 1}]
    assert curve(rows, "loss") == ([2.0], [1.0])


def test_svm_curves_by_data_set():
    rows = [{"data": "a", "epoch": None, "accuracy": 0.25}, {"data": "a", "epoch": 1, "accuracy": 0.5}]
    rows += [{"data": "a", "epoch": 4, "accuracy": 0.5}, {"data": "a", "accuracy": 0.75}]
    rows += [{"data": "b", "epoch": 4, "accuracy": 0.75, "chosen_accuracy": 0.875, "chosen_C": 1.0}]
    first, second, third = svm_curves(rows)
    assert (first.name, first.epochs, first.accuracies, first.random) == ("a", [1, 4], [50, 50], 25)
    assert first.best == (1, 50)
    assert (second.name, second.random, second.best) == ("b", None, (4, 75))
    assert (third.name, third.random, third.best) == ("b, C by cross-validation", None, (4, 87.5))
