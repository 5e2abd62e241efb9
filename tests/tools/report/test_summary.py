"""The page of several runs: the table, links to reports that exist, curves of each run."""

import json
import re

from tools.report.summary import write_summary

RESULTS = {
    "accuracy <b>": {"mean": 75.0, "std": 7.07, "values": [70.0, 80.0]},
    "seconds": {"mean": 1.0, "std": 0.0, "values": [1.0]},
}


def test_runs_are_listed_with_their_curves(tmp_path):
    for run in ("seed0", "seed1"):
        (tmp_path / run).mkdir()
        rows = [{"kind": "val", "epoch": epoch, "accuracy": 0.5 + 0.1 * epoch} for epoch in range(3)]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "seed0" / "report.html").write_text("x")
    page = write_summary(tmp_path, RESULTS, ["seed0", "seed1"], title="A <i>").read_text()
    assert "75.00 ± 7.07 %" in page and "accuracy &lt;b&gt;" in page and "<h1>A &lt;i&gt;</h1>" in page
    assert '<td><a href="seed0/report.html">seed0</a></td><td class="num">70.00</td>' in page
    assert '<td>seed1</td><td class="num">80.00</td><td class="num"></td>' in page
    _, chart = re.findall(r'<script type="application/json" class="readout">(.*?)</script>', page)
    found = json.loads(chart)
    assert [one["name"] for one in found["series"]] == ["seed0", "seed1"]
    assert found["series"][0]["text"] == ["50", "60", "70"]


def test_runs_that_left_nothing_are_still_listed(tmp_path):
    page = write_summary(tmp_path, RESULTS, ["fold0", "fold1"], title="none").read_text()
    assert "fold1" in page and page.count("<figure") == 1  # the accuracies that are known
    assert "Classes over all runs" not in page
