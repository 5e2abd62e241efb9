"""The main program from end to end: runs, resumed runs, several processes, bad input."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from tests.commands import run_in_processes
from tools import pretrain as runner_pretrain
from utils.files import read_checkpoint

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "cfgs" / "debug" / "point-m2ae.yaml"
FOLDER = Path("experiments/debug/point-m2ae")
SMALLER = [
    "dataset.train.clouds=64", "total_bs=16", "dataset.svm.train.clouds=60", "dataset.svm.test.clouds=40", "log_every=2",
    "svm.random_weights=false", "svm.cross_validate=false", "scheduler.lag=0", "model.drop_path_rate=0.2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2AE_CACHE", os.environ.get("M2AE_CACHE", str(Path.home() / ".cache" / "m2ae")))


def arguments(name, *flags, settings=SMALLER):
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["--config", str(RECIPE), "--exp_name", name, "--device", "cpu", *flags, *sets]


def rows(name):
    lines = (FOLDER / name / "metrics.jsonl").read_text().splitlines()
    timing = {"seconds", "samples_per_second", "memory_mb"}
    return [{key: value for key, value in json.loads(line).items() if key not in timing} for line in lines]


def assert_same_run(name, other):
    """Compare two runs bit for bit: weights, optimizer, metrics, and every row that is not a time."""
    a, b = (read_checkpoint(FOLDER / run / "ckpt-last.pth") for run in (name, other))
    assert a["epoch"] == b["epoch"] and a["best_metrics"] == b["best_metrics"] and a["metrics"] == b["metrics"]
    for key, value in a["base_model"].items():
        assert torch.equal(value, b["base_model"][key]), key
    for index, state in a["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][index][key]), (index, key)
    best = [read_checkpoint(FOLDER / run / "ckpt-best.pth") for run in (name, other)]
    assert all(torch.equal(value, best[1]["base_model"][key]) for key, value in best[0]["base_model"].items())
    key = lambda row: (row["epoch"], row["kind"], row.get("step", 0))  # noqa: E731
    at = {name: {key(row): row for row in rows(name) if row["kind"] != "step"} for name in (name, other)}
    assert at[name] == at[other]
    assert len(rows(other)) == len({key(row) for row in rows(other)}), "a row was written twice"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with one uninterrupted run called `whole`."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder):
        assert main.main(arguments("whole")) == 0
    return folder


@pytest.fixture
def beside_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def test_a_run_leaves_everything_behind(beside_whole):
    folder = FOLDER / "whole"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "ckpt-last.pth",
        "ckpt-best.pth",
        "report.html",
        "gallery.png",
        "provenance.yaml",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert (
        list(folder.glob("TFBoard/train/events*"))
        and list(folder.glob("TFBoard/test/events*"))
        and list(folder.glob("*.log"))
    )
    kinds = [row["kind"] for row in rows("whole")]
    assert kinds.count("epoch") == 3 and kinds.count("svm") == 3
    epochs = [row for row in rows("whole") if row["kind"] == "epoch"]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    checkpoint = read_checkpoint(folder / "ckpt-last.pth")
    assert set(checkpoint) == {
        "base_model", "optimizer", "scaler", "ema", "epoch", "metrics", "best_metrics", "pending", "random", "config", "format",
    }  # fmt: skip
    best = max((row for row in rows("whole") if row["kind"] == "svm"), key=lambda row: row["accuracy"])
    assert checkpoint["best_metrics"]["acc"] == best["accuracy"]
    # The resolved configuration is a recipe of its own.
    assert (
        main.main(
            ["--config", str(folder / "config.yaml"), "--exp_name", "again", "--set", "max_epoch=0", "--device", "cpu"]
        )
        == 0
    )


def test_svm_on_demand(beside_whole, capsys):
    flags = ["--test_svm", "synthetic", "--ckpts", str(FOLDER / "whole" / "ckpt-best.pth")]
    flags += ["--probe", "knn", "--probe", "logistic"]
    assert main.main(arguments("svm", *flags, settings=[s for s in SMALLER if "cross" not in s])) == 0
    log = capsys.readouterr().err
    assert "Linear Accuracy : 0." in log and "knn accuracy: 0." in log and "logistic accuracy: 0." in log
    [folder] = (FOLDER / "svm").glob("svm_synthetic_*")
    assert (folder / "report.html").exists()
    assert len((folder / "predictions.txt").read_text().splitlines()) == 41


@pytest.mark.parametrize("call", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_sigterm_saves_and_resume_is_exact(beside_whole, no_pictures, monkeypatch, call):
    calls = []
    original = runner_pretrain.augment

    def augment(*args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(runner_pretrain, "augment", augment)
    name = f"stopped{call}"
    assert main.main(arguments(name)) == 128 + signal.SIGTERM
    monkeypatch.setattr(runner_pretrain, "augment", original)
    pending = read_checkpoint(FOLDER / name / "ckpt-last.pth")["pending"]
    assert pending["step"] == call % 4
    assert main.main(arguments(name, "--resume")) == 0
    assert_same_run("whole", name)


def test_stopped_during_the_evaluation(beside_whole, no_pictures, monkeypatch):
    """The checkpoint names it as pending; resume evaluates the same weights, and the result counts for their epoch."""
    original = runner_pretrain.LinearProbe.evaluate_features

    def evaluate(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner_pretrain.LinearProbe, "evaluate_features", evaluate)
    assert main.main(arguments("pending")) == 130
    assert read_checkpoint(FOLDER / "pending" / "ckpt-last.pth")["pending"]["evaluations"] == [0]
    monkeypatch.setattr(runner_pretrain.LinearProbe, "evaluate_features", original)
    assert main.main(arguments("pending", "--resume")) == 0
    assert_same_run("whole", "pending")


def test_died_before_the_first_checkpoint(beside_whole, no_pictures, monkeypatch):
    """Nothing is there to go on from: `--resume` starts over, without the rows of the first attempt."""
    original, calls = runner_pretrain.augment, []

    def augment(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(runner_pretrain, "augment", augment)
    assert main.main(arguments("early")) == 130
    assert rows("early") and not (FOLDER / "early" / "ckpt-last.pth").exists()
    monkeypatch.setattr(runner_pretrain, "augment", original)
    assert main.main(arguments("early", "--resume")) == 0
    assert_same_run("whole", "early")


def test_sigkill_and_resume_is_exact(beside_whole, no_pictures):
    """Killed in the middle of an epoch, without a chance to save."""
    command = [sys.executable, str(ROOT / "main.py"), *arguments("killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = FOLDER / "killed" / "metrics.jsonl"
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if metrics.exists() and any('"step", "epoch": 1' in line for line in metrics.read_text().splitlines()):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_checkpoint(FOLDER / "killed" / "ckpt-last.pth")["epoch"] < 2
    assert main.main(arguments("killed", "--resume")) == 0
    assert_same_run("whole", "killed")


def test_accumulation_survives_a_stop(no_pictures, monkeypatch):
    """Published accumulation carries gradients over epochs; they are saved with the rest."""
    settings = [*SMALLER, "step_per_update=3", "legacy=[undivided_accumulation]", "max_epoch=1"]
    assert main.main(arguments("whole", settings=settings)) == 0
    task = runner_pretrain.Pretraining
    original = task.evaluate

    def evaluate(self, trainer, epoch):
        original(self, trainer, epoch)
        if epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(task, "evaluate", evaluate)
    assert main.main(arguments("carried", settings=settings)) == 128 + signal.SIGTERM
    assert read_checkpoint(FOLDER / "carried" / "ckpt-last.pth")["pending"]["gradients"]
    monkeypatch.setattr(task, "evaluate", original)
    assert main.main(arguments("carried", "--resume", settings=settings)) == 0
    assert_same_run("whole", "carried")


@pytest.mark.parametrize(
    ("accumulated", "steps"), [(1, 12), *(pytest.param(count, 20, marks=pytest.mark.slow) for count in (1, 2))]
)
def test_two_processes_equal_one(no_pictures, accumulated, steps):
    """torchrun with gloo and shared batch statistics sees the losses of one process for 20 steps of the warm-up.

    Training from random weights amplifies any rounding: with the fused embedding or without, over three seeds, differences of 1e-7 in
    the first steps have grown to 5e-7 .. 5e-5 by the twentieth. The first steps therefore are where a wrong gradient would show.
    """
    settings = [
        f"dataset.train.clouds={steps // 2 * 32}", "max_epoch=1", "log_every=1", f"step_per_update={accumulated}",
        "model.drop_path_rate=0.2", "svm.random_weights=false", "svm.cross_validate=false", "dataset.svm.train.clouds=60",
        "dataset.svm.test.clouds=40",
    ]  # fmt: skip
    assert main.main(arguments("one", "--val_freq", "2", settings=settings)) == 0
    run_in_processes(arguments("two", "--sync_bn", "--val_freq", "2", settings=settings))
    losses = {name: [row["loss"] for row in rows(name) if row["kind"] == "step"] for name in ("one", "two")}
    assert len(losses["one"]) == steps
    assert losses["two"][:8] == pytest.approx(losses["one"][:8], rel=2e-6)
    assert losses["two"][:12] == pytest.approx(losses["one"][:12], rel=1e-5)
    assert losses["two"] == pytest.approx(losses["one"], rel=2e-4)


@pytest.mark.slow
def test_two_processes_may_share_out_the_set():
    """Each trains on its own clouds; steps and judgements are as many as without."""
    settings = [*SMALLER, "max_epoch=1", "log_every=1", "total_bs=16", "dataset.train.clouds=48"]
    run_in_processes(arguments("shards", "--shard_set", settings=settings))
    run_in_processes(arguments("whole_set", settings=settings))
    shards, whole = ([row for row in rows(name) if row["kind"] == "step"] for name in ("shards", "whole_set"))
    assert len(shards) == len(whole) == 6  # three an epoch
    assert shards[0]["loss"] != whole[0]["loss"]


def refused(capsys, argv, *words):
    """Run a command that must fail with exit code 2, one message with these words and no traceback."""
    assert main.main(argv) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and "Traceback" not in message
    for word in words:
        assert word in message, message


def test_bad_arguments(capsys, tmp_path):
    refused(capsys, ["--config", "cfgs/debug/point-m2a.yaml"], "cfgs/debug/point-m2ae.yaml")
    refused(capsys, arguments("x", settings=["model.mask_ration=0.5"]), "mask_ration", "mask_ratio")
    refused(capsys, arguments("x", settings=["model.NAME=Point_M2EA"]), "Point_M2AE")
    refused(capsys, arguments("x", settings=["total_bs=lots"]), "total_bs", "lots")
    refused(capsys, arguments("x", settings=["dataset.train.npoints=20"]), "20", "32 groups")
    refused(capsys, arguments("x", "--resume"), "ckpt-last.pth")
    (tmp_path / "broken.yaml").write_text("model: {NAME: Point_M2AE\nnpoints: [")
    refused(capsys, ["--config", "broken.yaml"], "broken.yaml", "line")
    if not torch.cuda.is_available():
        refused(capsys, [*arguments("x"), "--device", "cuda"], "--device cuda", "cpu")
    refused(
        capsys,
        ["--config", "cfgs/fine-tuning/scan_pb.yaml", "--exp_name", "z", "--device", "cpu"],
        "Point_M2AE_ScanObjectNN",
        "no model of pre-training",
        "--finetune_model",
    )
    refused(capsys, arguments("x", "--vote"), "--vote", "--finetune_model")
    assert not (FOLDER / "x").exists()
    refused(capsys, arguments("y", settings=["total_bs=100000"]), "batch", "256")
    assert not list((FOLDER / "y").glob("ckpt*"))


def test_bad_checkpoints(capsys, tmp_path):
    refused(capsys, arguments("x", "--test_svm", "synthetic", "--ckpts", "none.pth"), "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    refused(capsys, arguments("x", "--test_svm", "synthetic", "--ckpts", "text.pth"), "text.pth")
    torch.save({"base_model": {"MAE_encoder.norm.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    refused(capsys, arguments("x", "--test_svm", "synthetic", "--ckpts", "other.pth"), "other.pth", "point-mae")


def test_an_earlier_run_is_not_overwritten(beside_whole, capsys):
    before = (FOLDER / "whole" / "ckpt-last.pth").read_bytes()
    refused(capsys, arguments("whole"), "--resume", "--overwrite")
    assert (FOLDER / "whole" / "ckpt-last.pth").read_bytes() == before


def test_read_only_folder(capsys, tmp_path, monkeypatch):
    """A file stands where the folder should be: what a read-only disk looks like to a superuser as well."""
    (tmp_path / "experiments").write_text("")
    refused(capsys, arguments("x"), "experiments", "cannot")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(no_pictures, capsys, monkeypatch):
    original = runner_pretrain.augment
    calls = []

    def augment(points, *args):
        calls.append(1)
        points = original(points, *args)
        if len(calls) == 6:
            points[0, 0] = float("inf")
        return points

    monkeypatch.setattr(runner_pretrain, "augment", augment)
    refused(capsys, arguments("nan"), "epoch 1, step 1", "train/", "ckpt-last.pth")
    assert read_checkpoint(FOLDER / "nan" / "ckpt-last.pth")["epoch"] == 0
