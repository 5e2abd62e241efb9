"""Which epoch counts: `--select` and `--held_out` in fine-tuning, few-shot, part segmentation, pre-training and --test_svm."""

import contextlib
import json
from pathlib import Path

import pytest

import main
from tests.commands import rows
from tools.evaluate import Evaluator
from tools.report.runlog import RunLog
from tools.report.selection import selection_section
from tools.results import printable
from tools.session import Session
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
SETS = {
    "fine-tuning": ["dataset.train.clouds=96", "dataset.val.clouds=40", "scheduler.lag=0", "max_epoch=3"],
    "segmentation": ["dataset.train.clouds=48", "dataset.val.clouds=20", "max_epoch=2"],
    "debug": ["dataset.train.clouds=48", "dataset.svm.train.clouds=60", "dataset.svm.test.clouds=40", "max_epoch=1"],
}
RECIPES = {
    "fine-tuning": "fine-tuning/point-mae/debug",
    "segmentation": "segmentation/point-mae/debug",
    "debug": "debug/point-mae",
}


def run(task, name, *flags, code=0):
    """Run a small recipe into a folder of its own and return that folder."""
    sets = [part for setting in SETS[task] for part in ("--set", setting)]
    scratch = ["--scratch_model"] if task != "debug" and "--test" not in flags else []
    arguments = ["--config", str(ROOT / "cfgs" / f"{RECIPES[task]}.yaml"), "--exp_name", name, "--device", "cpu"]
    assert main.main([*arguments, *scratch, *sets, *flags]) == code
    return Path("experiments") / RECIPES[task] / name


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """Run all tests of this file in one folder."""
    with contextlib.chdir(tmp_path_factory.mktemp("selection")):
        yield


def test_the_test_set_is_evaluated_once(monkeypatch):
    """With `held_out` the epoch is chosen on a part of the training set; the test set is evaluated with its weights alone."""
    evaluated, original = [], Evaluator.evaluate

    def counted(self, model):
        evaluated.append(self.clouds.subset)
        return original(self, model)

    monkeypatch.setattr(Evaluator, "evaluate", counted)
    folder = run("fine-tuning", "held", "--select", "held_out", "--held_out", "0.25")
    assert evaluated.count("test") == 1 and evaluated[-1] == "test" and evaluated.count("train") == 3
    held_out, [selected] = rows(folder, "held_out"), rows(folder, "selected")
    best = max(held_out, key=lambda row: row["accuracy"])
    assert selected["epoch"] == best["epoch"] and not rows(folder, "val")
    assert read_checkpoint(folder / "ckpt-best.pth")["epoch"] == selected["epoch"]
    found = result(folder)
    assert found["results"] == {"accuracy, epoch selected on held-out clouds": 100 * selected["accuracy"]}
    assert found["for tables"] == list(found["results"]) and found["select"] == "held_out"
    page = (folder / "report.html").read_text()
    assert "Which epoch counts" in page and "epoch selected on held-out clouds" in page
    # A complete run that is resumed evaluates nothing again.
    evaluated.clear()
    monkeypatch.setattr(Session, "report", lambda self: None)
    run("fine-tuning", "held", "--select", "held_out", "--held_out", "0.25", "--resume")
    assert not evaluated and len(rows(folder, "selected")) == 1


def test_ckpt_best_is_what_the_selected_row_says():
    folder = run("fine-tuning", "again", "--select", "held_out", "--held_out", "0.25")
    [selected] = rows(folder, "selected")
    arguments = ["--config", str(ROOT / "cfgs" / f"{RECIPES['fine-tuning']}.yaml"), "--test", "--device", "cpu"]
    sets = ["--set", "dataset.test.clouds=40", "--set", "dataset.val.clouds=40"]
    assert main.main([*arguments, *sets, "--ckpts", str(folder / "ckpt-best.pth")]) == 0
    [test] = folder.glob("test_*/result.json")
    assert json.loads(test.read_text())["results"]["accuracy"] == pytest.approx(100 * selected["accuracy"])


def test_both_selections_of_one_run():
    """With a held-out part beside the published selection, one run tells how optimistic that is."""
    folder = run("fine-tuning", "both", "--held_out", "0.25")
    on_test = {row["epoch"]: row["accuracy"] for row in rows(folder, "val")}
    [selected] = rows(folder, "selected")
    assert selected["accuracy"] == on_test[selected["epoch"]]
    found = result(folder)
    labelled = "accuracy, best epoch (selected on the test set)"
    assert found["results"][labelled] == 100 * max(on_test.values()) >= 100 * selected["accuracy"]
    assert found["for tables"] == ["accuracy, last epoch", "accuracy, epoch selected on held-out clouds"]
    log = next(folder.glob("*.log")).read_text()
    assert "(best so far, selected on the test set)" in log


def test_last_epoch_selects_nothing():
    folder = run("fine-tuning", "last", "--select", "last")
    [only] = rows(folder, "val")
    assert only["epoch"] == 3 and not (folder / "ckpt-best.pth").exists()
    assert result(folder)["results"] == {"accuracy, last epoch": 100 * only["accuracy"]}


def test_part_segmentation_selects_by_instance_miou():
    folder = run("segmentation", "held", "--select", "held_out", "--held_out", "0.34")
    held_out, [selected] = rows(folder, "held_out"), rows(folder, "selected")
    assert len(held_out) == 2 and not rows(folder, "parts")
    assert selected["epoch"] == max(held_out, key=lambda row: (row["instance_miou"], row["epoch"]))["epoch"]
    assert (
        result(folder)["results"]["instance mIoU, epoch selected on held-out clouds"] == 100 * selected["instance_miou"]
    )


def test_pre_training_selects_epoch_and_c():
    folder = run("debug", "held", "--select", "held_out", "--held_out", "0.34")
    held_out, [selected] = rows(folder, "held_out"), rows(folder, "selected")
    assert [row["epoch"] for row in held_out] == [None, 0, 1] and not rows(folder, "svm")
    best = max(held_out[1:], key=lambda row: row["accuracy"])
    assert (selected["epoch"], selected["C"]) == (best["epoch"], best["C"])
    assert read_checkpoint(folder / "ckpt-best.pth")["epoch"] == best["epoch"]
    name = "linear SVM on Synthetic, epoch and C selected on held-out clouds"
    assert result(folder)["results"][name] == 100 * selected["accuracy"]
    # The same weights, evaluated by --test_svm with the same part held out, reach the same.
    flags = (
        "--test_svm",
        "own",
        "--select",
        "held_out",
        "--held_out",
        "0.34",
        "--ckpts",
        str(folder / "ckpt-best.pth"),
    )
    run("debug", "again", *flags)
    [again] = Path("experiments", RECIPES["debug"], "again").glob("svm_*/result.json")
    assert "Accuracy at C selected on held-out clouds" in (again.parent / "report.html").read_text()
    assert json.loads(again.read_text())["results"][
        "linear SVM on Synthetic, C selected on held-out clouds"
    ] == pytest.approx(100 * selected["accuracy"])


def test_pre_training_shows_all_that_is_known():
    folder = run("debug", "both", "--held_out", "0.34")
    found = result(folder)
    svm = [row for row in rows(folder, "svm") if row["epoch"] is not None]
    best = "best epoch (selected on the test set), linear SVM on Synthetic, C 0.01"
    assert found["results"][best] == 100 * max(row["accuracy"] for row in svm) and best not in found["for tables"]
    assert "linear SVM on Synthetic, epoch and C selected on held-out clouds" in found["for tables"]


def test_held_out_part_that_leaves_a_class_empty(capsys):
    folder = run("fine-tuning", "empty", "--select", "held_out", "--held_out", "0.01", code=2)
    message = capsys.readouterr().err
    assert "held-out part would have none of them" in message and "choose a share above" in message
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"), [(("--held_out", "1.5"), "below 1"), (("--test", "--select", "last"), "selects nothing")]
)
def test_selections_that_cannot_be(flags, message, capsys):
    test = ["--ckpts", "none.pth"] if "--test" in flags else []
    run("fine-tuning", "bad", *flags, *test, code=2)
    assert message in capsys.readouterr().err


def test_selection_section_says_what_a_table_may_print():
    val = [{"epoch": epoch, "accuracy": value} for epoch, value in ((1, 0.5), (2, 0.8), (3, 0.7))]
    held_out = [{"epoch": epoch, "accuracy": value} for epoch, value in ((1, 0.6), (2, 0.6), (3, 0.9))]
    text = selection_section(RunLog(val=val, held_out=held_out, selected=[{"epoch": 3, "accuracy": 0.7}])).body
    cells = [row.split("<td") for row in text.split("<tr")[2:]]
    assert [("80.00" in "".join(row), "as such only" in "".join(row)) for row in cells] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert "90.00" in text  # held out, at the selected epoch
    assert selection_section(RunLog()) is None
    assert printable(["a, last epoch", "a, best epoch (selected on the test set)"]) == ["a, last epoch"]
