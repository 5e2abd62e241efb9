"""Fine-tuning from end to end: from a checkpoint or from scratch, resumed, judged, voted, swept over seeds; bad input."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

import main
from datasets import build_dataset
from datasets.few_shot import write_folds
from tests.commands import check_exact_resume, check_late_evaluation, pretrained, rows
from tools import finetune as runner_finetune
from utils.config.yaml import read_yaml
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
FOLDER = Path("experiments/fine-tuning/point-mae/debug")
SMALLER = [
    "dataset.train.clouds=96",
    "dataset.val.clouds=40",
    "dataset.test.clouds=40",
    "log_every=2",
    "scheduler.lag=0",
]


def arguments(name, *flags, method="point-mae", settings=SMALLER):
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = ROOT / "cfgs" / "fine-tuning" / method / "debug.yaml"
    return ["--config", str(recipe), "--exp_name", name, "--device", "cpu", *flags, *sets]


def voting(name, *flags):
    return arguments(name, "--finetune_model", "--ckpts", "pre.pth", "--vote", *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a checkpoint and one uninterrupted run called `whole`, with voting."""
    folder = tmp_path_factory.mktemp("finetune")
    with contextlib.chdir(folder):
        pretrained("pre.pth")
        assert main.main(voting("whole")) == 0
    return folder


@pytest.fixture
def beside_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def test_a_run_leaves_everything_behind(beside_whole):
    folder = FOLDER / "whole"
    names = ("ckpt-last.pth", "ckpt-best.pth", "ckpt-best_vote.pth", "config.yaml", "metrics.jsonl", "report.html")
    for name in names:
        assert (folder / name).stat().st_size > 0, name
    epochs, judged, votes = (rows(folder, kind) for kind in ("epoch", "val", "vote"))
    assert [row["epoch"] for row in epochs] == [0, 1, 2] and all(0 <= row["accuracy"] <= 1 for row in epochs)
    assert [row["epoch"] for row in judged] == [1, 2]  # epoch 0 is not judged, as published
    assert votes[-1]["epoch"] == 2 and votes[-1]["rounds"] == 1
    best = read_checkpoint(folder / "ckpt-last.pth")["best_metrics"]
    assert best["acc"] == max(row["accuracy"] for row in judged)
    assert best["acc_vote"] == max(row["mean"] for row in votes)
    page = (folder / "report.html").read_text()
    assert "Last accuracy" in page and "selected on the test set" in page and "Confusion" in page
    wrong = round(40 * (1 - judged[-1]["accuracy"]))
    assert min(wrong, 24) <= page.count(", taken for ") <= wrong and "<h2>By class</h2>" in page


def test_checkpoints_name_their_classes(beside_whole, capsys):
    """The names of the training set travel with the weights, and a test set that calls its classes otherwise is refused."""
    names = build_dataset({"NAME": "Synthetic", "clouds": 40}).class_names
    folder = FOLDER / "whole"
    saved = read_checkpoint(folder / "ckpt-best.pth")
    assert saved["config"]["class_names"] == names == read_yaml(folder / "config.yaml")["class_names"]
    first, second, *rest = names
    saved["config"]["class_names"] = [second, first, *rest]
    torch.save(saved, "swapped.pth")
    words = ("not the 20 of swapped.pth", f"label 0 is {second!r} there and {first!r} here")
    refused(capsys, arguments("swapped", "--test", "--ckpts", "swapped.pth"), "Synthetic (test)", *words)
    other = [*SMALLER, "class_names=[a, b]"]
    refused(capsys, arguments("named", "--scratch_model", settings=other), "2 of the key class_names", "label 0 is 'a'")


def test_a_classifier_learns(beside_whole):
    settings = [*SMALLER, "max_epoch=11", "scheduler.kwargs.epochs=16", "augmentation=none", "optimizer.kwargs.lr=3e-3"]
    assert main.main(arguments("learn", "--scratch_model", "--val_freq", "11", settings=settings)) == 0
    epochs = rows(FOLDER / "learn", "epoch")
    assert epochs[-1]["accuracy"] > epochs[0]["accuracy"] + 0.15 and epochs[-1]["loss"] < epochs[0]["loss"] - 0.3


@pytest.mark.slow
def test_the_smallest_recipes_learn(beside_whole, capsys):
    """As they stand, they fit their training clouds above chance, 5 % of 20 classes and 20 % of 5 ways, and say that this is little."""
    assert main.main(arguments("smallest", "--scratch_model", settings=[])) == 0
    assert "24 updates in all: enough to see that everything runs, too few to learn much" in capsys.readouterr().err
    assert rows(FOLDER / "smallest", "epoch")[-1]["accuracy"] > 0.1  # of 256 clouds: 3.7 standard deviations
    sets = [
        {"NAME": "Synthetic", "subset": part, "clouds": 300, "npoints": 256, "N_POINTS": 256}
        for part in ("train", "test")
    ]
    write_folds(*map(build_dataset, sets), Path("folds-smallest"), way=5, shot=10, folds=range(1))
    recipe = str(ROOT / "cfgs" / "few-shot" / "point-mae" / "debug.yaml")
    flags = ["--config", recipe, "--exp_name", "a", "--device", "cpu", "--scratch_model"]
    flags += ["--way", "5", "--shot", "10", "--fold", "0"]
    flags += [part for entry in ("train", "val") for part in ("--set", f"dataset.{entry}.DATA_PATH=folds-smallest")]
    assert main.main(flags) == 0
    assert rows(Path("experiments/few-shot/point-mae/debug/a"), "epoch")[-1]["accuracy"] > 0.4


def test_the_encoder_comes_from_the_checkpoint(beside_whole, capsys):
    frozen = arguments("frozen", "--finetune_model", "--ckpts", "pre.pth", "--transfer", "mlp3")
    assert main.main(frozen) == 0
    assert "3 missing (cls_head_finetune, cls_pos, cls_token)" not in capsys.readouterr().err
    before = read_checkpoint(Path("pre.pth"))["base_model"]
    after = read_checkpoint(FOLDER / "frozen" / "ckpt-last.pth")["base_model"]
    moved = read_checkpoint(FOLDER / "whole" / "ckpt-last.pth")["base_model"]
    shared = [key for key in before if key.startswith("MAE_encoder.")]
    assert len(shared) > 20
    for key in shared:
        # Frozen means frozen: weights and the batch statistics of the encoder.
        assert torch.equal(before[key], after[key.removeprefix("MAE_encoder.")]), key
    assert any(not torch.equal(before[key], moved[key.removeprefix("MAE_encoder.")]) for key in shared)
    assert after["cls_head_finetune.1.num_batches_tracked"] == 9  # the head trains: three epochs of three steps


def test_a_frozen_encoder_may_be_in_training_mode(beside_whole):
    """As published for PCP-MAE: its weights stay, its batch statistics move."""
    frozen = ("--finetune_model", "--ckpts", "pre.pth", "--transfer", "mlp3", "--set", "frozen_mode=training")
    assert main.main(arguments("training", *frozen)) == 0
    before = read_checkpoint(Path("pre.pth"))["base_model"]
    after = read_checkpoint(FOLDER / "training" / "ckpt-last.pth")["base_model"]
    pairs = {key: (before[f"MAE_encoder.{key}"], after[key]) for key in after if f"MAE_encoder.{key}" in before}
    assert {key for key, pair in pairs.items() if not torch.equal(*pair)} == {
        key for key in pairs if "running" in key or "tracked" in key
    }


def test_linear_transfer_trains_one_layer(beside_whole):
    assert main.main(arguments("linear", "--finetune_model", "--ckpts", "pre.pth", "--transfer", "linear")) == 0
    saved = read_checkpoint(FOLDER / "linear" / "ckpt-last.pth")
    head = [key for key in saved["base_model"] if key.startswith("cls_head")]
    assert head == ["cls_head_finetune.weight", "cls_head_finetune.bias"]
    flags = ["--test", "--ckpts", str(FOLDER / "linear" / "ckpt-last.pth"), "--transfer", "linear"]
    assert main.main(arguments("linear", *flags)) == 0


def test_resume_is_exact(beside_whole, monkeypatch):
    kinds = ("epoch", "val", "vote")
    check_exact_resume(monkeypatch, runner_finetune, voting, FOLDER, at_call=5, kinds=kinds)


def test_a_judgement_that_was_interrupted_is_made_up_for(beside_whole, monkeypatch):
    check_late_evaluation(monkeypatch, runner_finetune.Evaluator, voting, FOLDER, kinds=("val", "vote"))


def test_test_agrees_with_validation(beside_whole, capsys):
    for flags in ((), ("--vote", "--vote_rounds", "2")):
        command = arguments("whole", "--test", "--ckpts", str(FOLDER / "whole" / "ckpt-last.pth"), *flags)
        assert main.main(command) == 0
    log = capsys.readouterr().err
    last = rows(FOLDER / "whole", "val")[-1]["accuracy"]
    assert f"accuracy {100 * last:.2f} %" in log and "over 2 rounds" in log and "selected on the test set" in log
    folder = sorted((FOLDER / "whole").glob("test_*"))[0]
    assert len((folder / "predictions.txt").read_text().splitlines()) == 41
    page = (folder / "report.html").read_text()
    assert page.index("Mistakes, most confident first") < page.index("Confusion matrix") < page.index("By class")


def test_seeds_are_run_and_summarised(beside_whole, capsys):
    short = [*SMALLER, "max_epoch=1"]
    assert main.main(arguments("seeds", "--scratch_model", "--seeds", "3,4", settings=short)) == 0
    summary = json.loads((FOLDER / "seeds" / "summary.json").read_text())
    assert summary["runs"] == ["seed3", "seed4"]
    values = summary["results"]["accuracy, last epoch"]["values"]
    for seed, value in zip((3, 4), values, strict=True):
        assert value == pytest.approx(100 * rows(FOLDER / "seeds" / f"seed{seed}", "val")[-1]["accuracy"])
        assert read_checkpoint(FOLDER / "seeds" / f"seed{seed}" / "ckpt-last.pth")["random"]["seed"] == seed
    assert "| accuracy, last epoch |" in capsys.readouterr().out
    assert '<a href="seed4/report.html">seed4</a>' in (FOLDER / "seeds" / "summary.html").read_text()
    # A finished sweep is only read again.
    assert main.main(arguments("seeds", "--scratch_model", "--seeds", "3,4", "--resume", settings=short)) == 0
    assert json.loads((FOLDER / "seeds" / "summary.json").read_text()) == summary


def train_all_folds():
    """Train on ten folds of the built-in shapes; returns the command without its fold."""
    parts = [
        build_dataset({"NAME": "Synthetic", "subset": part, "clouds": 200, "npoints": 256, "N_POINTS": 256})
        for part in ("train", "test")
    ]
    write_folds(*parts, Path("folds"), way=5, shot=5, folds=range(10))
    recipe = str(ROOT / "cfgs" / "few-shot" / "point-mae" / "debug.yaml")
    argv = ["--config", recipe, "--exp_name", "few", "--device", "cpu", "--scratch_model", "--way", "5", "--shot", "5"]
    argv += [part for entry in ("train", "val") for part in ("--set", f"dataset.{entry}.DATA_PATH=folds")]
    argv += ["--set", "max_epoch=1", "--set", "total_bs=25"]
    assert main.main([*argv, "--fold", "all"]) == 0
    return argv


def test_all_folds_are_run_and_summarised(beside_whole, capsys):
    argv = train_all_folds()
    folder = Path("experiments/few-shot/point-mae/debug/few")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["runs"] == [f"fold{fold}" for fold in range(10)]
    values = summary["results"]["accuracy, last epoch"]["values"]
    judged = [rows(folder / f"fold{fold}", "val")[-1]["accuracy"] for fold in range(10)]
    assert values == pytest.approx([100 * value for value in judged])
    assert len(set(values)) > 1, "the folds are different tasks"
    page = (folder / "summary.html").read_text()
    assert "Score by fold" in page and "Classes over all runs" in page
    assert page.count('<a href="fold') >= 10 + 5  # of each run, and of the lowest run of each class
    capsys.readouterr()
    refused(capsys, [*argv, "--fold", "11"], "11.pkl", "does not exist")
    way = [part if part != "5" else "30" for part in argv]
    refused(capsys, [*way, "--fold", "0"], "30way_30shot")


def test_a_published_path_follows_the_checkpoint(beside_whole, capsys):
    """`cfgs/finetune_modelnet.yaml` with a Point-MAE checkpoint is Point-MAE's recipe; its data are missing here, which is said."""
    argv = ["--config", "cfgs/finetune_modelnet.yaml", "--finetune_model", "--exp_name", "a", "--ckpts", "pre.pth"]
    assert main.main([*argv, "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "stands for" in message and "fine-tuning/point-mae/modelnet40.yaml" in message


def refused(capsys, argv, *words):
    assert main.main(argv) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and "Traceback" not in message
    for word in words:
        assert word in message, message


def test_bad_input(beside_whole, capsys):
    start = ("--finetune_model",)
    refused(capsys, arguments("a", *start, settings=["model.cls_dim=7"]), "model.cls_dim: 7 classes", "20")
    refused(capsys, arguments("b", *start, settings=["npoints=999"]), "npoints: 999", "256")
    refused(capsys, arguments("c", *start, settings=["dataset.val=null"]), "dataset.val: is missing")
    refused(capsys, arguments("d", *start, settings=["transfer=linear"]), "transfer: linear", "model.head")
    pretrained("m2ae.pth", "point-m2ae")
    refused(capsys, arguments("e", *start, "--ckpts", "m2ae.pth"), "checkpoint of point-m2ae", "model of point-mae")
    refused(capsys, arguments("f", "--test", "--ckpts", "pre.pth"), "lacks", "--test needs a fine-tuned checkpoint")
    refused(capsys, arguments("whole", *start), "holds a run already")
    debug = ["--config", str(ROOT / "cfgs" / "debug" / "point-mae.yaml"), "--exp_name", "x", "--device", "cpu"]
    refused(capsys, [*debug, "--finetune_model"], "Point_MAE does not classify", "cfgs/fine-tuning/")
