"""I2P-MAE from end to end: a run, one that stops and goes on, two processes, and its checkpoint in the published layout."""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml

import main
from models import build_model, load_weights
from models.images.clip_layout import clip_keys
from tests.commands import run_in_processes
from tools import export as export_published
from tools import pretrain as runner_pretrain
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
FOLDER = Path("experiments/debug/i2p-mae")
SMALLER = [
    "dataset.train={NAME: Synthetic, subset: train, clouds: 32, N_POINTS: 128, npoints: 128}", "total_bs=8", "log_every=1", "max_epoch=0",
    "dataset.svm=null", "scheduler.lag=0", "model.drop_path_rate=0", "model.num_groups=[16, 8, 4]",
]  # fmt: skip


def arguments(name, *flags, settings=SMALLER):
    sets = [part for setting in settings for part in ("--set", setting)]
    return [
        "--config",
        str(ROOT / "cfgs/debug/i2p-mae.yaml"),
        "--exp_name",
        name,
        "--device",
        "cpu",
        "--val_freq",
        "5",
        *flags,
        *sets,
    ]


def rows(name, kind):
    lines = (FOLDER / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with one uninterrupted run called `whole`."""
    folder = tmp_path_factory.mktemp("guided")
    with contextlib.chdir(folder):
        assert main.main(arguments("whole")) == 0
    return folder


@pytest.fixture
def beside_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def test_a_run_logs_both_losses_and_shows_the_teacher(beside_whole):
    for row in rows("whole", "epoch"):
        assert row["loss"] == pytest.approx(row["loss_2d"] + row["loss_3d"], rel=1e-5)
    page = (FOLDER / "whole" / "report.html").read_text()
    assert "What the image teacher sees" in page and page.count(', view 2: z, x"') == 4  # depth maps next to the clouds
    packed = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page)[1])["items"][-4:]
    for row in packed:
        saliency, visible, hidden = row["clouds"]
        assert visible["total"] + hidden["total"] == saliency["total"] and len(set(saliency["values"])) > 4
    assert (FOLDER / "whole" / "saliency.png").exists()
    keys = read_checkpoint(FOLDER / "whole" / "ckpt-last.pth")["base_model"]
    assert not [key for key in keys if key.startswith(("clip_model", "teacher"))]


def test_a_stopped_run_goes_on_to_the_same_weights(beside_whole, monkeypatch):
    """What the teacher says and which mask is drawn depends on seed, epoch and step alone."""
    original, calls = runner_pretrain.augment, []

    def augment(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(runner_pretrain, "augment", augment)
    assert main.main(arguments("stopped")) == 128 + signal.SIGTERM
    monkeypatch.setattr(runner_pretrain, "augment", original)
    assert main.main(arguments("stopped", "--resume")) == 0
    ends = [read_checkpoint(FOLDER / name / "ckpt-last.pth")["base_model"] for name in ("whole", "stopped")]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
def test_two_processes_equal_one(beside_whole):
    run_in_processes(arguments("two", "--sync_bn"))
    for part in ("loss_2d", "loss_3d"):
        one, two = ([row[part] for row in rows(name, "step")] for name in ("whole", "two"))
        assert len(one) == 4 and two == pytest.approx(one, rel=1e-4)
        assert two[:2] == pytest.approx(one[:2], rel=2e-6)


def clip_of_another_program(path):
    """Write a small CLIP with both towers."""
    visual = {"visual.conv1.weight": torch.ones(8, 3, 4, 4)}
    towers = {f"{tower}transformer.resblocks.0.ln_1.bias": torch.ones(8) for tower in ("visual.", "")}
    torch.save({key: torch.ones(8) for key in clip_keys(visual | towers)} | visual, path)


def test_export_in_the_published_layout_and_back(beside_whole, capsys):
    """The exported file holds CLIP too, in half precision where the published one does; it loads, and judges as ours does."""
    clip_of_another_program("clip.pth")
    own = str(FOLDER / "whole" / "ckpt-last.pth")
    assert export_published.main(["--ckpts", own, "--clip", "clip.pth", "--out", "published.pth"]) == 0
    state = torch.load("published.pth", weights_only=True)["base_model"]
    assert all(key.startswith("module.") for key in state)
    assert state["module.clip_model.visual.conv1.weight"].dtype == torch.float16
    assert state["module.clip_model.visual.ln_post.weight"].dtype == torch.float32
    found = []
    model = build_model(yaml.safe_load((FOLDER / "whole" / "config.yaml").read_text())["model"]).eval()
    points = torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(0))
    for path in (own, "published.pth"):
        torch.nn.init.ones_(model.mask_token)
        report = load_weights(model, path)
        found.append(model.encode(points).detach())
    assert torch.equal(*found) and {key.split(".")[0] for key in report.ignored} == {"clip_model"}
    assert export_published.main(["--ckpts", own, "--clip", own, "--out", "again.pth"]) == 2
    assert "holds no CLIP" in capsys.readouterr().err
    assert export_published.main(["--ckpts", own, "--out", "again.pth"]) == 2
    assert "give --clip" in capsys.readouterr().err


def test_fine_tuning_takes_the_encoder(beside_whole):
    recipe = ROOT / "cfgs" / "fine-tuning" / "i2p-mae" / "debug.yaml"
    sets = [
        "dataset.train.clouds=64",
        "dataset.val.clouds=40",
        "dataset.test.clouds=40",
        "max_epoch=0",
        "model.num_groups=[16, 8, 4]",
    ]
    flags = [part for setting in sets for part in ("--set", setting)]
    own = str(FOLDER / "whole" / "ckpt-last.pth")
    command = [
        "--config",
        str(recipe),
        "--exp_name",
        "tuned",
        "--device",
        "cpu",
        "--finetune_model",
        "--ckpts",
        own,
        *flags,
    ]
    assert main.main(command) == 0
    log = next(Path("experiments/fine-tuning/i2p-mae/debug/tuned").glob("*.log")).read_text()
    assert "rec_head_2d" in log and "0 unexpected" not in log and "unexpected" not in log
