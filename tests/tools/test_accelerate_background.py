"""Asynchronous evaluation and saving: the same run as between epochs, also where it is stopped or killed with an evaluation under way."""

import threading
from pathlib import Path

import pytest
import torch

import main
from tests.commands import ROOT, check_exact_resume, rows
from tools import accelerate
from tools import pretrain as runner_pretrain
from tools.accelerate import Background, is_asynchronous
from tools.svm import LinearProbe
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

FOLDER = Path("experiments/debug/point-mae")
SETTINGS = [
    "max_epoch=1", "total_bs=4", "dataset.train.clouds=20", "dataset.svm.train.clouds=40", "dataset.svm.test.clouds=40", "log_every=2",
    "svm.cross_validate=false",
]  # fmt: skip


def arguments(name, *flags, evaluation="beside"):
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    recipe = str(ROOT / "cfgs" / "debug" / "point-mae.yaml")
    return ["--config", recipe, "--exp_name", name, "--device", "cpu", "--evaluation", evaluation, *flags, *sets]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with a run that evaluates while it trains."""
    folder = tmp_path_factory.mktemp("beside")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(arguments("whole")) == 0
    return folder


@pytest.fixture
def in_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def assert_same_files(name, other):
    """Compare what two runs left, checkpoints bit for bit and rows in any order."""
    for file in ("ckpt-last.pth", "ckpt-best.pth"):
        a, b = (read_checkpoint(FOLDER / run / file) for run in (name, other))
        for key in ("epoch", "metrics", "best_metrics"):
            assert a[key] == b[key], (file, key)
        assert a["pending"]["evaluations"] == b["pending"]["evaluations"]
        assert all(torch.equal(value, b["base_model"][key]) for key, value in a["base_model"].items())
        for index, state in a["optimizer"]["state"].items():
            assert all(torch.equal(value, b["optimizer"]["state"][index][key]) for key, value in state.items())
    for kind in ("svm", "epoch"):
        assert rows(FOLDER / name, kind) == rows(FOLDER / other, kind)


def test_the_same_run_as_between_epochs(in_whole):
    assert main.main(arguments("between", evaluation="between")) == 0
    assert_same_files("whole", "between")
    judged = rows(FOLDER / "whole", "svm")
    assert [row["epoch"] for row in judged] == [None, 0, 1]
    assert read_checkpoint(FOLDER / "whole" / "ckpt-last.pth")["metrics"]["acc"] == judged[-1]["accuracy"]


def test_a_stopped_run_goes_on(in_whole, monkeypatch):
    """Stopped in mid-epoch, with the evaluation of the epoch before under way: that is written before anything is saved."""
    check_exact_resume(monkeypatch, runner_pretrain, arguments, FOLDER, at_call=7, kinds=("svm",))
    assert_same_files("whole", "stopped")


def test_a_run_that_dies_with_an_evaluation_under_way(in_whole, monkeypatch):
    """The checkpoint on disk names it as pending, and going on evaluates first."""
    original = LinearProbe.evaluate_features

    def dies(self, features, *, choose):
        if self.judged:
            raise KeyboardInterrupt
        self.judged = True  # the random weights
        return original(self, features, choose=choose)

    monkeypatch.setattr(LinearProbe, "judged", False, raising=False)
    monkeypatch.setattr(LinearProbe, "evaluate_features", dies)
    assert main.main(arguments("killed")) == 130
    left = read_checkpoint(FOLDER / "killed" / "ckpt-last.pth")
    assert left["epoch"] == 0 and left["pending"]["evaluations"] == [0] and "acc" not in left["metrics"]
    monkeypatch.setattr(LinearProbe, "evaluate_features", original)
    assert main.main(arguments("killed", "--resume")) == 0
    assert_same_files("whole", "killed")


def test_training_goes_on_while_an_epoch_is_evaluated(tmp_path, monkeypatch):
    """The evaluation of epoch 0 ends only after a step of epoch 1 has begun."""
    monkeypatch.chdir(tmp_path)
    begun, calls, original, augment = threading.Event(), [], LinearProbe.evaluate_features, runner_pretrain.augment

    def evaluate(self, features, *, choose):
        assert threading.current_thread() is not threading.main_thread()
        calls.append(1)
        assert len(calls) != 2 or begun.wait(120)
        return original(self, features, choose=choose)

    def watched(*args):
        if len(calls) >= 2:
            begun.set()
        return augment(*args)

    monkeypatch.setattr(LinearProbe, "evaluate_features", evaluate)
    monkeypatch.setattr(runner_pretrain, "augment", watched)
    assert main.main(arguments("watched")) == 0
    assert begun.is_set() and len(calls) == 3


def test_what_is_started_is_done_in_order_and_handed_out_at_the_end():
    done, booked = [], []
    work = Background()
    for number in range(4):
        work.start(lambda number=number: done.append(number) or number, booked.append)
    assert booked == []
    work.finish()
    assert done == booked == [0, 1, 2, 3]
    work.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work.close()


@pytest.mark.parametrize(
    ("asked", "device", "cores", "beside"),
    [
        ("auto", "cpu", 8, False),
        ("auto", "cuda", 8, True),
        ("auto", "cuda", 1, False),
        ("beside", "cpu", 1, True),
        ("between", "cuda", 8, False),
    ],
)
def test_where_evaluation_happens(asked, device, cores, beside, monkeypatch):
    monkeypatch.setattr(accelerate.os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    assert is_asynchronous(asked, torch.device(device)) is beside
