"""Groups of runs, compared pair by pair, and the studies in the repository."""

import json

import pytest

from benchmarks.studies import compare
from tests.commands import ROOT

STUDIES = {
    path.name: {
        name: section
        for name, section in json.loads(path.read_text(encoding="utf-8")).items()
        if isinstance(section, dict) and "quantities" in section
    }
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    if '"quantities"' in path.read_text(encoding="utf-8")
}


def write(folder, accuracies, votes=(), rows=()):
    folder.mkdir(parents=True)
    rows = [*rows, *({"kind": "epoch", "epoch": i, "seconds": 30, "loss": 0.5} for i in range(len(accuracies)))]
    rows += [{"kind": "step", "epoch": 0, "loss": 9.0}]
    rows += [{"kind": "val", "epoch": i, "accuracy": value} for i, value in enumerate(accuracies)]
    rows += [{"kind": "vote", "epoch": i, "mean": value} for i, value in enumerate(votes)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "provenance.yaml").write_text("Command: main.py --seed 1\nPython: '3.12'\n")


def study(tmp_path, *names):
    groups = [f"{name}={tmp_path / name}" for name in names]
    compare.main([*groups, "--out", str(tmp_path / "new" / "study.json"), "--section", "a section"])
    return json.loads((tmp_path / "new" / "study.json").read_text())["a section"]


def test_differences_are_paired(tmp_path, capsys):
    for seed, (scratch, tuned) in enumerate((((0.5, 0.4), (0.5, 0.6)), ((0.7, 0.6), (0.6, 0.9)))):
        write(tmp_path / "scratch" / f"seed{seed}", scratch, votes=[0.5])
        write(tmp_path / "tuned" / f"seed{seed}", tuned, votes=[0.75])
    found = study(tmp_path, "scratch", "tuned")
    last = found["quantities"]["accuracy, last epoch"]
    assert last["scratch"]["values"] == [40, 60] and last["tuned"]["values"] == [60, 90]
    assert last["tuned - scratch"] == {"mean": 25, "std": pytest.approx(7.071, abs=1e-3), "values": [20, 30]}
    best = found["quantities"]["accuracy, best epoch (selected on the test set)"]
    assert best["scratch"]["values"] == [50, 70] and best["tuned"]["values"] == [60, 90]
    assert found["quantities"]["accuracy with voting, last epoch"]["tuned - scratch"]["mean"] == 25
    assert found["quantities"]["training, wall minutes"]["tuned"]["mean"] == 1
    assert "| accuracy, last epoch | 50.00 ± 14.14 | 75.00 ± 21.21 | 25.00 ± 7.07 |" in capsys.readouterr().out
    run = found["groups"]["tuned"]["seed1"]
    assert run["command"] == "main.py --seed 1" and run["versions"] == {"Python": "3.12"}
    assert run["epoch"] == {"epoch": [0, 1], "seconds": [30, 30], "loss": [0.5, 0.5]} and "step" not in run


def test_detectors_are_compared(tmp_path):
    for name, ap25 in (("scratch", 0.3), ("tuned", 0.4)):
        row = {"kind": "detection", "epoch": 0, "ap25": ap25, "ap50": 0.1, "ar25": 0.7}
        write(tmp_path / name / "seed0", [0.5], rows=[row])
    found = study(tmp_path, "scratch", "tuned")["quantities"]
    assert found["AP25, last epoch"]["tuned - scratch"]["values"] == [10]
    assert found["AP50, last epoch"]["scratch"]["values"] == [10]
    assert found["AR25, last epoch"]["scratch"]["values"] == [70]


def test_long_curves_are_thinned_and_sums_are_not(tmp_path):
    write(tmp_path / "a" / "seed0", [i / 1000 for i in range(401)])
    found = study(tmp_path, "a")
    kept = found["groups"]["a"]["seed0"]
    assert kept["epoch"]["epoch"] == list(range(1, 401, 3)) and kept["val"]["accuracy"][-1] == 0.4
    assert found["quantities"]["training, wall minutes"]["a"]["mean"] == 200.5


def test_other_runs_are_refused(tmp_path):
    write(tmp_path / "a" / "seed0", [0.5])
    write(tmp_path / "b" / "seed1", [0.5])
    with pytest.raises(SystemExit, match="must be the same"):
        study(tmp_path, "a", "b")
    with pytest.raises(SystemExit, match="expected NAME=FOLDER"):
        compare.main(["a", "--out", str(tmp_path / "out.json"), "--section", "a"])


def test_a_section_is_added_to_a_study_and_replaced(tmp_path):
    write(tmp_path / "a" / "seed0", [0.5])
    out = tmp_path / "study.json"
    for section in ("one", "two", "one"):
        compare.main([f"a={tmp_path / 'a'}", "--out", str(out), "--section", section])
    found = json.loads(out.read_text())
    assert list(found) == ["one", "two"] and found["one"] == found["two"]
    assert '"values": [50.0]' in out.read_text()


def test_part_segmentation_is_compared_by_its_mean_ious(tmp_path):
    for group, gain in (("a", 0.0), ("b", 0.125)):
        rows = [
            {"kind": "parts", "epoch": epoch, "instance_miou": value + gain, "class_miou": value, "accuracy": 0.75}
            for epoch, value in enumerate((0.25, 0.5))
        ]
        write(tmp_path / group / "seed0", [], rows=[{"kind": "epoch", "epoch": 0, "seconds": 60, "loss": 1}, *rows])
    quantities = study(tmp_path, "a", "b")["quantities"]
    assert quantities["instance mIoU, last epoch"]["b - a"]["values"] == [12.5]
    assert quantities["class mIoU, last epoch"]["b"]["values"] == [50]
    assert "accuracy, last epoch" not in quantities and quantities["point accuracy, last epoch"]["a"]["values"] == [75]


def test_pre_training_runs_are_compared_by_their_linear_svm(tmp_path):
    """Last epoch and random weights at both C, where a group has them; minutes and memory too."""
    for name, seconds, gain in (("plain", 60, 0.0), ("guided", 120, 0.1)):
        rows = [{"kind": "epoch", "epoch": 0, "seconds": seconds, "memory_mb": seconds, "loss": 1}]
        if name == "plain":
            rows.append({"kind": "svm", "epoch": None, "accuracy": 0.1, "chosen_accuracy": 0.2})
        rows += [{"kind": "svm", "epoch": 0, "accuracy": 0.4}]
        rows += [{"kind": "svm", "epoch": 1, "accuracy": 0.3, "chosen_accuracy": 0.5 + gain}]
        write(tmp_path / name / "seed0", [], rows=rows)
    found = study(tmp_path, "plain", "guided")["quantities"]
    assert found["linear SVM, last epoch, cross-validated C"]["guided - plain"]["mean"] == pytest.approx(10)
    assert found["linear SVM, random weights, published C"] == {"plain": {"mean": 10, "std": 0, "values": [10]}}
    best = found["linear SVM, best epoch (selected on the test set), published C"]
    assert best["guided"]["values"] == [40]
    assert found["training, wall minutes"]["guided"]["mean"] == 2 and found["peak memory, MB"]["plain"]["mean"] == 60


@pytest.mark.parametrize("name", STUDIES)
def test_summaries_of_a_study_follow_from_its_runs(name):
    """Means and deviations are those of the values, and the values those of the epochs that are kept."""
    assert STUDIES[name]
    for section in STUDIES[name].values():
        for row in section["quantities"].values():
            for quantity in row.values():
                again = compare.spread(quantity["values"])
                assert again["mean"] == pytest.approx(quantity["mean"], abs=1.5e-3)
                assert again["std"] == pytest.approx(quantity["std"], abs=1.5e-3)
        for group, runs in section["groups"].items():
            assert all(run["command"] for run in runs.values())
            if len(runs) != len(section.get("runs", runs)):
                continue  # of ten folds one is kept whole
            reached = [compare.results(run) for run in runs.values()]
            thinned = any(len(run["epoch"]["epoch"]) <= run["epoch"]["epoch"][-1] for run in runs.values())
            sums = {"training, wall minutes"} if thinned else set()
            for quantity, row in section["quantities"].items():
                if group in row and quantity not in sums:
                    again = [found[quantity] for found in reached]
                    assert row[group]["values"] == pytest.approx(again, abs=2e-3), (section, quantity)


def test_few_files_hold_all_results():
    """One summary a study; neither logs nor resolved configurations."""
    files = [path for path in (ROOT / "benchmarks" / "results").rglob("*") if path.is_file()]
    assert 10 < len(files) <= 60 and {path.suffix for path in files} <= {".json", ".md"}
