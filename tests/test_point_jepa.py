"""Point-JEPA from end to end: a run that stops and goes on, its report, what is fine-tuned of it, and a run that has collapsed."""

from functools import partial
from pathlib import Path

import pytest
import torch

import main
from datasets import DATASETS
from models import MODELS, build_model
from tests.commands import check_exact_resume, rows
from tools import pretrain as runner
from utils.config.load import load_config
from utils.files import read_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
SMALLER = [
    "dataset.train.clouds=64", "dataset.svm.train.clouds=40", "dataset.svm.test.clouds=30", "total_bs=16", "log_every=2",
    "svm.random_weights=false", "svm.cross_validate=false", "max_epoch=1",
]  # fmt: skip


def arguments(recipe, name, *more, settings=()):
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["--config", str(ROOT / "cfgs" / f"{recipe}.yaml"), "--exp_name", name, "--device", "cpu", *more, *sets]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_resumes_bit_for_bit_and_is_fine_tuned(monkeypatch, capsys):
    """The teacher and its count are restored; the report shows it; fine-tuning freezes the transformer at first."""
    command = partial(arguments, "debug/point-jepa", settings=SMALLER)
    assert main.main(command("whole")) == 0
    runs = Path("experiments/debug/point-jepa")
    check_exact_resume(monkeypatch, runner, command, runs, at_call=6, kinds=("step", "epoch", "svm"))
    folder = runs / "stopped"
    weights = read_checkpoint(folder / "ckpt-last.pth")["base_model"]
    assert weights["teacher.step"].item() == 8 and weights["teacher.initted"].item() == 1
    moved = [
        key
        for key in weights
        if "ema_model" in key and not torch.equal(weights[key], weights[key.replace("teacher.ema_model", "student")])
    ]
    assert len(moved) > 20
    assert all(row["log_target_rank"] > 1 and row["log_target_std"] > 0 for row in rows(folder, "epoch"))
    page = (folder / "report.html").read_text()
    assert "Features of the teacher" in page and "Order, blocks and predictions" in page

    few = [
        "dataset.train.clouds=32",
        "dataset.val.clouds=20",
        "total_bs=16",
        "max_epoch=1",
        "max_epoch_inclusive=false",
    ]
    start = ("--finetune_model", "--ckpts", str(folder / "ckpt-last.pth"))
    assert main.main(arguments("fine-tuning/point-jepa/debug", "tuned", *start, settings=few)) == 0
    assert "missing (cls_head)" in capsys.readouterr().err
    tuned = read_checkpoint(next(Path("experiments/fine-tuning").rglob("ckpt-last.pth")))["base_model"]
    same = {
        key: torch.equal(value, weights[key.replace("encoder.", "student.", 1)])
        for key, value in tuned.items()
        if key.startswith("encoder.")
    }
    assert all(same.values())  # epoch 0 is frozen
    key = "tokenizer.embedding.encoder.first_conv.0.weight"
    assert not torch.equal(tuned[key], weights[key])


def test_a_run_that_has_collapsed_says_so(capsys):
    """All tokens are equal from the start, and stay so."""
    recipe = ROOT / "cfgs/debug/point-jepa.yaml"
    model = build_model(load_config(recipe, models=MODELS, datasets=DATASETS).model)
    with torch.no_grad():
        for layer in (model.tokenizer.embedding.encoder.second_conv[3], model.positional_encoding[2]):
            layer.weight.zero_()
    save_checkpoint(Path("flat.pth"), {"base_model": model.state_dict()})
    settings = [
        *SMALLER,
        "max_epoch=0",
        "optimizer.kwargs.lr=1e-9",
        "scheduler.kwargs.start_lr=0",
        "scheduler.kwargs.min_lr=0",
    ]
    assert main.main(arguments("debug/point-jepa", "flat", "--start_ckpts", "flat.pth", settings=settings)) == 0
    assert "epoch 0: the features of the teacher have collapsed" in capsys.readouterr().err
