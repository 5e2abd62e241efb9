"""Tables of runs: `tools.summary` and `tools.compare`, over folders as runs, other programs and accidents leave them."""

import csv
import io
import json
import re

import pytest

from tests.browser import axe_serious, screenshot, scrolls_sideways
from tools import compare, summary
from tools.report.tables import FORMS
from tools.summary_runs import find_runs

CONFIG = {
    "model": {"NAME": "PointTransformer", "cls_dim": 15, "drop_path_rate": 0.1},
    "dataset": {"train": {"NAME": "ScanObjectNN", "SPLIT": "PB", "ROOT": "data/a"}, "val": {"NAME": "ScanObjectNN"}},
    "max_epoch": 3,
    "max_epoch_inclusive": False,
    "class_names": ["bag", "bin"],
}


def write_run(folder, accuracies, *, seed=0, selected=None, **model):
    """Write a folder as fine-tuning leaves it; JSON is YAML."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "model": {**CONFIG["model"], **model}, "seed": seed}
    (folder / "config.yaml").write_text(json.dumps(config))
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 1.0, "seconds": 30.0} for epoch in range(len(accuracies))]
    rows += [
        {"kind": "val", "epoch": epoch, "data": "ScanObjectNN", "accuracy": value}
        for epoch, value in enumerate(accuracies)
    ]
    if selected is not None:
        rows.append({"kind": "held_out", "epoch": 1, "accuracy": 0.9})
        rows.append({"kind": "selected", "by": "held_out", "epoch": 1, "accuracy": selected})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def experiments(tmp_path):
    """Two methods of three seeds each, and what else lies about."""
    root = tmp_path / "experiments"
    for seed in range(3):
        write_run(root / "plain" / f"seed{seed}", [0.70, 0.80 + seed / 100, 0.75], seed=seed, selected=0.79)
        write_run(
            root / "deep" / f"seed{seed}", [0.70, 0.85 + seed / 100, 0.78 + seed / 100], seed=seed, drop_path_rate=0.2
        )
    write_run(root / "empty", [])
    (root / "other").mkdir()
    (root / "other" / "config.yaml").write_text("trainer: lightning\n")
    (root / "broken").mkdir()
    (root / "broken" / "config.yaml").write_text("model: [\n")
    (root / "notes").mkdir()
    return root


def rows(root, capsys, *flags):
    assert summary.main([str(root), "--format", "csv", *flags]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_one_row_for_the_seeds_of_a_run(experiments, capsys):
    assert summary.main([str(experiments), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    found = {row["folder"].rpartition("/")[2]: row for row in csv.DictReader(io.StringIO(out))}
    assert set(found) == {"plain", "deep", "empty"}
    plain = found["plain"]
    assert (plain["method"], plain["task"], plain["data"], plain["seeds"]) == (
        "point-mae",
        "fine-tuning",
        "ScanObjectNN",
        "0, 1, 2",
    )
    assert plain["last epoch"] == "75.00 ± 0.00" and plain["best epoch (selected on the test set)"] == "81.00 ± 1.00"
    assert (
        plain["epoch selected on held-out clouds"] == "79.00 ± 0.00"
        and plain["on the held-out clouds"] == "90.00 ± 0.00"
    )
    assert plain["minutes"] == "1.5 ± 0.0"
    assert (
        plain["differs in"] == "model.drop_path_rate=0.1" and found["deep"]["differs in"] == "model.drop_path_rate=0.2"
    )
    assert found["empty"]["note"] == "no metrics" and found["empty"]["last epoch"] == ""
    assert "other/config.yaml: is of another program" in err and "broken" in err


def test_sort_filter_and_each(experiments, capsys):
    assert [row["folder"].rpartition("/")[2] for row in rows(experiments, capsys, "--sort", "best")] == [
        "deep",
        "plain",
        "empty",
    ]
    assert len(rows(experiments, capsys, "--each")) == 7
    [deep] = rows(experiments, capsys, "--filter", "model.drop_path_rate=0.2")
    assert deep["last epoch"] == "79.00 ± 1.00"
    [second] = rows(experiments, capsys, "--each", "--filter", "seeds=1", "--filter", "folder=plain")
    assert second["best epoch (selected on the test set)"] == "81.00"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--filter", "model.none=1"], "expected COLUMN=TEXT"),
        (["--filter", "method=none"], "leaves none"),
        (["--sort", "bset"], "did you mean best"),
    ],
)
def test_flags_that_select_nothing(experiments, capsys, flags, message):
    assert summary.main([str(experiments), *flags]) == 2
    assert message in capsys.readouterr().err


def test_folders_without_runs(tmp_path, capsys):
    assert summary.main([str(tmp_path)]) == 2 and "has no runs below it" in capsys.readouterr().err
    assert summary.main([str(tmp_path / "none")]) == 2 and "is no folder" in capsys.readouterr().err


def test_forms_of_a_table():
    headers, cells = ["run", "accuracy_1"], [["a|b", "91.2 ± 0.3"], ["50 %", "–"]]  # noqa: RUF001
    assert FORMS["markdown"](headers, cells).splitlines()[2] == r"| a\|b | 91.2 ± 0.3 |"
    assert r"a|b & 91.2 $\pm$ 0.3 \\" in FORMS["latex"](headers, cells) and r"accuracy\_1" in FORMS["latex"](
        headers, cells
    )
    assert r"50 \% & -- \\" in FORMS["latex"](headers, cells)
    assert list(csv.reader(io.StringIO(FORMS["csv"](headers, cells)))) == [headers, *cells]
    assert FORMS["terminal"](headers, cells).splitlines()[2] == "a|b   91.2 ± 0.3"


def test_summary_page(experiments, tmp_path):
    (experiments / "plain" / "summary.html").write_text("page of the seeds")
    assert summary.main([str(experiments), "--format", "html", "--out", str(tmp_path / "all.html")]) == 0
    page = (tmp_path / "all.html").read_text()
    assert 'href="experiments/plain/summary.html"' in page and "81.00 ± 1.00" in page and "<svg" in page


def write_detection(folder, values, *, seed=0):
    """Write a folder as training a detector leaves it, AP25 and AP50 of each epoch."""
    write_run(folder, [], seed=seed)
    config = {"model": {"NAME": "3DETR_M", "nqueries": 8}, "dataset": {"train": {"NAME": "SyntheticScenes"}}}
    (folder / "config.yaml").write_text(json.dumps({**config, "seed": seed, "max_epoch": len(values) - 1}))
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 1.0, "seconds": 30.0} for epoch in range(len(values))]
    rows += [
        {"kind": "detection", "epoch": epoch, "data": "SyntheticScenes", "ap25": ap25, "ap50": ap50}
        for epoch, (ap25, ap50) in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_detectors_have_their_scores(tmp_path, capsys):
    root = tmp_path / "experiments"
    for seed in range(2):
        write_detection(root / "boxes" / f"seed{seed}", [(0.5, 0.3), (0.4 + seed / 50, 0.2)], seed=seed)
    [row] = rows(root, capsys)
    assert (row["task"], row["score"], row["data"], row["minutes"]) == (
        "detection",
        "AP25",
        "SyntheticScenes",
        "1.0 ± 0.0",
    )
    assert row["last epoch"] == "41.00 ± 1.41" and row["best epoch (selected on the test set)"] == "50.00 ± 0.00"
    assert row["further scores"] == "AP50 20.00 ± 0.00" and "note" not in row
    assert summary.main([str(root), "--format", "html", "--out", str(tmp_path / "all.html")]) == 0
    assert "AP25, %" in (tmp_path / "all.html").read_text()


def test_links_of_a_page_lead_to_reports(experiments, tmp_path):
    """Wherever the page is, and for a single run as well, next to whose folder there may be a page of the seeds."""
    (experiments / "plain" / "summary.html").write_text("page of the seeds")
    (experiments / "plain" / "seed0" / "report.html").write_text("report")
    (tmp_path / "a page").mkdir()
    for folder, out, links in (
        (experiments, tmp_path / "a page" / "all.html", {"../experiments/plain/summary.html"}),
        (experiments / "plain" / "seed0", tmp_path / "one.html", {"experiments/plain/seed0/report.html"}),
    ):
        assert summary.main([str(folder), "--format", "html", "--out", str(out)]) == 0
        found = set(re.findall(r'href="([^"#]+)"', out.read_text()))
        assert found == links and all((out.parent / link).is_file() for link in found)


def test_other_scores_are_not_subtracted(experiments, tmp_path):
    for seed in range(3):
        write_detection(experiments / "boxes" / f"seed{seed}", [(0.5, 0.3)], seed=seed)
    out = tmp_path / "compare.html"
    assert compare.main([str(experiments / "plain"), str(experiments / "boxes"), "--out", str(out)]) == 0
    page = out.read_text()
    assert "None, because these are other scores or other data: accuracy on ScanObjectNN (fine-tuning); AP25" in page
    assert "95 % (Student" not in page


def test_comparison_of_paired_seeds(experiments, tmp_path):
    out = tmp_path / "compare.html"
    assert compare.main([str(experiments / "plain"), str(experiments / "deep"), "--out", str(out)]) == 0
    page = out.read_text()
    assert "+4.00" in page and "+3.00, +4.00, +5.00" in page  # of the last epochs, seed by seed
    assert "With 3 pairs no p below 0.25 can occur" in page
    assert "model.drop_path_rate=0.2" in page and "79.00 ± 1.00" in page
    assert re.search(r"\+1\.52 to \+6\.48", page)  # 4 +- 4.3027 / sqrt(3)


def test_comparison_of_other_seeds_is_an_error(experiments, tmp_path, capsys):
    write_run(experiments / "short" / "seed0", [0.5, 0.6, 0.7])
    write_run(experiments / "short" / "seed7", [0.5, 0.6, 0.7], seed=7)
    flags = [str(experiments / "plain"), str(experiments / "short"), "--out", str(tmp_path / "compare.html")]
    assert compare.main(flags) == 2
    assert "both need the same seeds" in capsys.readouterr().err and not (tmp_path / "compare.html").exists()
    assert compare.main([str(experiments / "empty"), *flags]) == 2
    assert "1 runs without an evaluation" in capsys.readouterr().err


def test_comparison_of_three_ranks_them(experiments, tmp_path):
    pytest.importorskip("scikit_posthocs")
    for seed in range(3):
        write_run(experiments / "third" / f"seed{seed}", [0.5, 0.6, 0.7 + seed / 100], seed=seed)
    out = tmp_path / "compare.html"
    assert compare.main([*(str(experiments / name) for name in ("plain", "deep", "third")), "--out", str(out)]) == 0
    page = out.read_text()
    assert "Friedman" in page and "mean rank" in page


def test_runs_keep_what_was_known(experiments):
    runs, others = find_runs(experiments)
    assert len(runs) == 7 and len(others) == 2
    run = next(run for run in runs if run.folder.match("deep/seed1"))
    assert (run.last, run.best, run.selected, run.epochs) == (pytest.approx(79), pytest.approx(86), None, 3)
    assert "dataset.train.ROOT" not in run.keys and "class_names" not in run.keys


def folders(opened):
    """Return the last column of the rows that are shown."""
    shown = opened.locator(".sortable tbody tr:visible")
    return [text.rpartition("/")[2] for text in shown.locator("td:last-child").all_text_contents()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_a_browser_sorts_and_filters_the_summary(experiments, tmp_path, browser_page, width):
    assert summary.main([str(experiments), "--format", "html", "--out", str(tmp_path / "all.html")]) == 0
    opened = browser_page(tmp_path / "all.html", width=width, height=800)
    assert opened.locator("svg").count() and axe_serious(opened) == [] and not scrolls_sideways(opened)
    best = opened.get_by_role("button", name="best epoch (selected on the test set)")
    best.click()
    assert folders(opened) == ["deep", "plain", "empty"]  # the highest first, what has no number last
    best.click()
    assert folders(opened) == ["plain", "deep", "empty"]
    assert opened.locator("th[aria-sort=ascending]").count() == 1
    opened.get_by_role("button", name="folder").click()
    assert folders(opened) == ["deep", "empty", "plain"]
    opened.get_by_label("Filter rows").fill("RATE=0.2")
    assert folders(opened) == ["deep"] and "1 of 3 rows" in opened.locator("output").all_text_contents()
    opened.get_by_label("Filter rows").fill("nothing has this")
    assert folders(opened) == []
    opened.get_by_label("Filter rows").fill("")
    assert len(folders(opened)) == 3 and axe_serious(opened) == []
    assert screenshot(opened, f"summary-{width}").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_a_browser_shows_the_comparison(experiments, tmp_path, browser_page, width):
    pytest.importorskip("scikit_posthocs")
    for seed in range(3):
        write_run(experiments / "third" / f"seed{seed}", [0.5, 0.6, 0.7 + seed / 100], seed=seed)
    out = tmp_path / "compare.html"
    assert compare.main([*(str(experiments / name) for name in ("plain", "deep", "third")), "--out", str(out)]) == 0
    opened = browser_page(out, width=width, height=800)
    heads = opened.locator("h2").all_text_contents()
    assert {"Results", "Differences", "Ranking", "Curves"} <= set(heads)
    assert axe_serious(opened) == [] and not scrolls_sideways(opened)
    chart = opened.locator("figure.chart").first
    chart.scroll_into_view_if_needed()
    chart.locator("svg").first.hover()
    assert chart.locator(".tip").is_visible()
    assert screenshot(opened, f"compare-{width}").stat().st_size > 20_000
