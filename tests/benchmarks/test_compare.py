"""Two groups of runs, compared pair by pair."""

import json

import pytest

from benchmarks import compare


def write(folder, accuracies, votes=()):
    folder.mkdir(parents=True)
    rows = [{"kind": "epoch", "epoch": i, "seconds": 30} for i in range(len(accuracies))]
    rows += [{"kind": "val", "epoch": i, "accuracy": value} for i, value in enumerate(accuracies)]
    rows += [{"kind": "vote", "epoch": i, "mean": value} for i, value in enumerate(votes)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("config.yaml", "provenance.yaml", "a.log"):
        (folder / name).write_text("x")


def test_differences_are_paired(tmp_path, capsys):
    for seed, (scratch, tuned) in enumerate((((0.5, 0.4), (0.5, 0.6)), ((0.7, 0.6), (0.6, 0.9)))):
        write(tmp_path / "a" / f"seed{seed}", scratch, votes=[0.5])
        write(tmp_path / "b" / f"seed{seed}", tuned, votes=[0.75])
    out = tmp_path / "out"
    compare.main(["--first", f"scratch={tmp_path / 'a'}", "--second", f"tuned={tmp_path / 'b'}", "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    last = summary["quantities"]["accuracy, last epoch"]
    assert last["scratch"]["values"] == [40, 60] and last["tuned"]["values"] == [60, 90]
    assert last["difference"] == {"mean": 25, "std": pytest.approx(7.071, abs=1e-3), "values": [20, 30]}
    best = summary["quantities"]["accuracy, best epoch (selected on the test set)"]
    assert best["scratch"]["values"] == [50, 70] and best["tuned"]["values"] == [60, 90]
    assert summary["quantities"]["accuracy with voting, last epoch"]["difference"]["mean"] == 25
    assert summary["training minutes"]["tuned"]["mean"] == 1
    assert "| accuracy, last epoch | 50.00 ± 14.14 | 75.00 ± 21.21 | 25.00 ± 7.07 |" in capsys.readouterr().out
    assert (out / "tuned" / "seed1" / "run.log").read_text() == "x"


def test_other_runs_are_refused(tmp_path):
    write(tmp_path / "a" / "seed0", [0.5])
    write(tmp_path / "b" / "seed1", [0.5])
    with pytest.raises(SystemExit, match="must be the same"):
        compare.main(
            ["--first", f"a={tmp_path / 'a'}", "--second", f"b={tmp_path / 'b'}", "--out", str(tmp_path / "out")]
        )
    with pytest.raises(SystemExit, match="expected NAME=FOLDER"):
        compare.main(["--first", "a", "--second", "b", "--out", str(tmp_path / "out")])


def test_part_segmentation_is_compared_by_its_mean_ious(tmp_path):
    for group, gain in (("a", 0.0), ("b", 0.125)):
        folder = tmp_path / group / "seed0"
        write(folder, [])
        rows = [{"kind": "epoch", "epoch": 0, "seconds": 60}]
        for epoch, value in enumerate((0.25, 0.5)):
            scores = {"instance_miou": value + gain, "class_miou": value, "accuracy": 0.75}
            rows.append({"kind": "parts", "epoch": epoch, **scores})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    compare.main(["--first", f"a={tmp_path / 'a'}", "--second", f"b={tmp_path / 'b'}", "--out", str(out)])
    quantities = json.loads((out / "summary.json").read_text())["quantities"]
    assert quantities["instance mIoU, last epoch"]["difference"]["values"] == [12.5]
    assert quantities["class mIoU, last epoch"]["b"]["values"] == [50]
    assert "accuracy, last epoch" not in quantities and quantities["point accuracy, last epoch"]["a"]["values"] == [75]


def test_pre_training_runs_are_compared_by_their_linear_svm(tmp_path):
    """Last epoch and random weights at both C, where both groups have them; minutes and memory beside."""
    for name, seconds, gain in (("plain", 60, 0.0), ("guided", 120, 0.1)):
        folder = tmp_path / name / "seed0"
        write(folder, [])
        rows = [{"kind": "epoch", "epoch": 0, "seconds": seconds, "memory_mb": seconds}]
        if name == "plain":
            rows.append({"kind": "svm", "epoch": None, "accuracy": 0.1, "chosen_accuracy": 0.2})
        rows += [{"kind": "svm", "epoch": epoch, "accuracy": 0.3, "chosen_accuracy": 0.5 + gain} for epoch in (0, 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    compare.main(
        ["--first", f"plain={tmp_path / 'plain'}", "--second", f"guided={tmp_path / 'guided'}", "--out", str(out)]
    )
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["quantities"]) == {
        "linear SVM, last epoch, published C",
        "linear SVM, last epoch, cross-validated C",
    }
    assert summary["quantities"]["linear SVM, last epoch, cross-validated C"]["difference"]["mean"] == pytest.approx(10)
    assert summary["training minutes"]["guided"]["mean"] == 2 and summary["peak memory, MB"]["plain"]["mean"] == 60
