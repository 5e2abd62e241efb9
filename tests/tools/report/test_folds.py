"""Several runs of a classifier as one page: a dot a run, and the classes that fail."""

import json
import re

from tools.report.folds import classes_section, read_classes, spread_section
from tools.report.runlog import read_predictions
from tools.report.summary import write_summary

RESULTS = {
    "accuracy, last epoch": {"mean": 75.0, "std": 7.07, "values": [70.0, 80.0]},
    "seconds": {"mean": 1.0, "std": 0.0, "values": [1.0, 1.0]},
    "accuracy with voting": {"mean": 1.0, "std": 0.0, "values": [1.0]},  # of one run alone
}


def fold(folder, name, class_names, pairs):
    """Write what a run leaves: names of its classes, and (true, predicted) of each cloud."""
    (folder / name).mkdir()
    (folder / name / "config.yaml").write_text(f"class_names: {json.dumps(class_names)}\n")
    lines = ["# cloud, true class, predicted class", *(f"cloud\t{label}\t{guess}" for label, guess in pairs)]
    (folder / name / "predictions.txt").write_text("\n".join(lines) + "\n")


def test_scores_are_dots_by_fold_with_mean_and_spread():
    section = spread_section(RESULTS, ["fold3", "fold7"])
    assert section.title == "Score by fold" and section.body.count("<figure") == 1
    found = json.loads(re.search(r'class="readout">(.*?)</script>', section.body)[1])
    assert [(one["name"], one["x"], one["text"]) for one in found["series"]] == [
        ("runs", [3, 7], ["70.00 %", "80.00 %"])
    ]
    assert "mean 75.00 %" in section.body and "± 7.07 %" in section.body and "<polyline" not in section.body
    both = spread_section(RESULTS, ["seed0_fold1", "seed4_fold1"])
    found = json.loads(re.search(r'class="readout">(.*?)</script>', both.body)[1])
    assert [(one["name"], one["x"]) for one in found["series"]] == [("seed 0", [1]), ("seed 4", [1])]
    assert spread_section(RESULTS, ["seed3", "seed4"]).title == "Score by seed"
    assert spread_section({"seconds": RESULTS["seconds"]}, ["a", "b"]) is None


def test_classes_are_told_apart_by_name_and_the_lowest_comes_first(tmp_path):
    """Label 0 is another class in each fold."""
    fold(tmp_path, "fold0", ["chair", "sofa <b>"], [(0, 0), (0, 0), (1, 0), (1, 1)])
    fold(tmp_path, "fold1", ["sofa <b>", "bed"], [(0, 1), (0, 1), (1, 1), (1, 0)])
    found = read_classes(tmp_path, ["fold0", "fold1", "gone"])
    assert (found["sofa <b>"].runs, found["sofa <b>"].taken_for) == (
        {"fold0": (2, 1), "fold1": (2, 0)},
        {"chair": 1, "bed": 2},
    )
    (tmp_path / "fold1" / "report.html").write_text("x")
    body = classes_section(tmp_path, ["fold0", "fold1"]).body
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", body)]
    lowest = '0.0 (<a href="fold1/report.html">fold1</a>)'
    assert rows[0] == ["sofa &lt;b&gt;", "bed (2), chair (1)", "2", "4", "1", "25.0", "35.4", lowest]
    assert [row[0] for row in rows] == ["sofa &lt;b&gt;", "bed", "chair"] and rows[2][-1] == "100.0 (fold0)"


def test_runs_that_left_no_predictions_or_strange_ones(tmp_path):
    assert classes_section(tmp_path, ["a"]) is None
    (tmp_path / "predictions.txt").write_text("# head\nname\twith tab\t1\t2\nbroken\nx\t1\ta\n")
    assert read_predictions(tmp_path / "predictions.txt") == ([1], [2])


def test_the_page_of_folds(tmp_path):
    for number in range(2):
        fold(tmp_path, f"fold{number}", ["chair", "sofa"], [(0, 0), (1, number)])
    page = write_summary(tmp_path, RESULTS, ["fold0", "fold1"], title="few").read_text()
    assert page.index("Score by fold") < page.index("Classes over all runs") < page.index("<h2>Results</h2>")
    assert len(page) < 100_000
