"""GeoMask3D from end to end: a teacher, guided runs that stop and go on, the report, the published commands, bad input."""

import contextlib
import hashlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch

import main
import main_finetune
import main_pretrain
from tests.commands import run_in_processes
from tools import pretrain as runner_pretrain
from tools.guides.gm3d import MOVING, map_distances
from tools.session import Session
from utils.files import read_checkpoint

ROOT = Path(__file__).parent.parent
SMALLER = [
    "dataset.train.clouds=64", "dataset.svm.train.clouds=40", "dataset.svm.test.clouds=30", "total_bs=16", "log_every=2",
    "svm.random_weights=false", "svm.cross_validate=false",
]  # fmt: skip
BASES = {"gm3d": "point-mae", "gm3d-point-m2ae": "point-m2ae"}
# Both methods run the same code; the pyramid takes twice as long.
METHODS = ["gm3d", pytest.param("gm3d-point-m2ae", marks=pytest.mark.slow)]


def flags(settings):
    return [part for setting in settings for part in ("--set", setting)]


def pretrain(method, name, *more, settings=()):
    arguments = ["--config", str(ROOT / "cfgs" / "debug" / f"{method}.yaml"), "--exp_name", name, "--device", "cpu"]
    return main.main([*arguments, *more, *flags([*SMALLER, *settings])])


def feature(method):
    teacher = f"experiments/debug/{BASES[method]}/teacher/ckpt-last.pth"
    return ["model.guidance.mode=feature", f"model.guidance.teacher={teacher}", "model.guidance.weights_from=1"]


def run_folder(method, name):
    return Path("experiments/debug") / method / name


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Return a folder with a teacher of each base method."""
    folder = tmp_path_factory.mktemp("gm3d")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "report", lambda self: None)
        for base in BASES.values():
            assert pretrain(base, "teacher", settings=["max_epoch=0"]) == 0
    return folder


@pytest.fixture(autouse=True)
def beside_teachers(teachers, monkeypatch):
    monkeypatch.chdir(teachers)


def whole(method):
    """Return the folder of an uninterrupted run in feature mode, which the first who asks for it trains."""
    folder = run_folder(method, "whole")
    if not folder.exists():
        assert pretrain(method, "whole", settings=feature(method)) == 0
    return folder


def same(a, b):
    """Compare nested values bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("method", METHODS)
def test_average_and_maps_survive_a_stop_bit_for_bit(monkeypatch, method):
    """Stopped within an epoch, the run ends with the same student, average, maps, optimizer and numbers as one that was not."""
    uninterrupted, call = whole(method), {"gm3d": 9, "gm3d-point-m2ae": 6}[method]
    monkeypatch.setattr(Session, "report", lambda self: None)
    calls, original = [], runner_pretrain.augment

    def augment(*args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    name = f"stopped{call}"
    monkeypatch.setattr(runner_pretrain, "augment", augment)
    assert pretrain(method, name, settings=feature(method)) == 128 + signal.SIGTERM
    monkeypatch.setattr(runner_pretrain, "augment", original)
    assert read_checkpoint(run_folder(method, name) / "ckpt-last.pth")["pending"]["step"] == call % 4
    assert pretrain(method, name, "--resume", settings=feature(method)) == 0
    a, b = (read_checkpoint(run / "ckpt-last.pth") for run in (uninterrupted, run_folder(method, name)))
    for part in ("base_model", "ema", "optimizer", "metrics", "best_metrics"):
        assert same(a[part], b[part]), part
    moved = [key for key, value in a["base_model"].items() if not torch.equal(value, a["ema"][f"module.{key}"])]
    assert len(moved) > 20  # the average is another model than the student
    assert set(a["ema"]["_extra_state"]) == {"map 0", "map 1", "map 2"}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_shows(method):
    """Losses and curves of the guidance in the log; maps of a few clouds at some epochs as a picture and to turn."""
    folder = whole(method)
    epochs = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "epoch"
    ]
    guided = {"gm3d": [2 / 10, 5 / 10, 8 / 10], "gm3d-point-m2ae": [1 / 7, 3 / 7, 5 / 7]}[method]
    assert [row["log_guided_fraction"] for row in epochs] == pytest.approx(guided)
    for key in ("loss_feature", "loss_chamfer", "loss_ranking", "log_rank_correlation", "log_guide_rank_correlation"):
        assert all(key in row for row in epochs)
    assert all(-1 <= row["log_guide_rank_correlation"] <= 1 for row in epochs)
    page = (folder / "report.html").read_text()
    for text in (
        "Guided masks",
        "Distance between maps of successive epochs",
        "complexity, epoch 0",
        f">{MOVING}</b>",
    ):
        assert text in page
    rows = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page)[1])["items"]
    watched = [row for row in rows if row["clouds"][-1].get("frames")]
    labels = ["epoch 0", "epoch 1", "epoch 2", "now"]
    assert [[label for label, _ in row["clouds"][-1]["frames"]] for row in watched] == 4 * [labels]
    first, *_, now = (values for _, values in watched[0]["clouds"][-1]["frames"])
    assert first == watched[0]["clouds"][0]["values"] != now  # the map of epoch 0 stands still in the first column
    assert (folder / "complexity.png").stat().st_size > 10_000 and (folder / "gallery.png").exists()
    guidance = read_checkpoint(folder / "ckpt-last.pth")["config"]["model"]["guidance"]
    assert len(guidance["teacher_sha256"]) == 64


def test_distance_between_maps():
    """0 for the same order, 2 for the reverse; an epoch without the one before has none."""
    rising = torch.arange(4.0).repeat(2, 1)
    assert map_distances({0: rising, 1: 5 * rising, 2: -rising, 5: rising}) == {1: 0.0, 2: 2.0}


def test_published_commands(no_pictures, tmp_path):
    """Pre-training into a folder of its own, fine-tuning from its averaged weights, evaluation of that."""
    recipe = str(ROOT / "cfgs" / "debug" / "gm3d.yaml")
    out, log = tmp_path / "out", tmp_path / "log"
    common = ["--log_dir", str(log), "--device", "cpu"]
    assert (
        main_pretrain.main(["--config", recipe, "--output_dir", str(out), "--epochs", "1", *common, *flags(SMALLER)])
        == 0
    )
    assert list(log.glob("train/events*")) and not (out / "TFBoard").exists()
    checkpoint = read_checkpoint(out / "ckpt-last.pth")
    assert checkpoint["epoch"] == 0

    recipe, tuned = str(ROOT / "cfgs" / "fine-tuning" / "gm3d" / "debug.yaml"), tmp_path / "tuned"
    sets = flags(["dataset.train.clouds=40", "dataset.val.clouds=30", "dataset.test.clouds=30", "total_bs=20"])
    arguments = ["--config", recipe, "--device", "cpu", *sets]
    start, still = ["--finetune", str(out / "ckpt-last.pth")], ["--lr", "0", "--min_lr", "0"]
    assert (
        main_finetune.main([*arguments, *start, "--output_dir", str(tuned), "--teacher", "--epochs", "1", *still]) == 0
    )
    state = read_checkpoint(tuned / "ckpt-last.pth")["base_model"]  # nothing moved, at a rate of 0
    averaged = checkpoint["ema"]
    assert torch.equal(
        state["blocks.blocks.0.mlp.fc1.weight"], averaged["module.MAE_encoder.blocks.blocks.0.mlp.fc1.weight"]
    )
    assert not torch.equal(state["norm_p.weight"], checkpoint["base_model"]["MAE_encoder.norm_p.weight"])
    assert (
        main_finetune.main(
            [*arguments, "--eval", "--finetune", str(tuned / "ckpt-last.pth"), "--output_dir", str(tuned)]
        )
        == 0
    )
    assert list(tuned.glob("test_*"))
    plain = out / "ckpt-last.pth"
    del (stripped := read_checkpoint(plain))["ema"]
    torch.save(stripped, tmp_path / "stripped.pth")
    assert (
        main_finetune.main(
            [*arguments, "--finetune", str(tmp_path / "stripped.pth"), "--teacher", "--output_dir", str(tmp_path / "x")]
        )
        == 2
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        (["model.guidance.epochs=9"], "the curriculum of 9 epochs is longer than the run of 3"),
        (["model.guidance.mode=feature"], "model.guidance.teacher: is missing"),
        (["model.guidance.mode=feature", "model.guidance.teacher=none.pth"], "none.pth"),
        (["model.guidance.mode=feature", "model.guidance.teacher=mini-mae"], "model.guidance.teacher: mini-mae: is neither"),
        (["model.guidance.fraction=1.5"], "fraction: 1.5 must lie between 0 and 1"),
        ([*feature("gm3d-point-m2ae")], "is a checkpoint of point-m2ae; give one of point-mae"),
        ([*feature("gm3d"), "model.group_size=8"], "was trained with group_size 16, the student has 8"),
    ],
)  # fmt: skip
def test_bad_input_is_said_before_the_first_step(capsys, settings, message):
    assert pretrain("gm3d", "bad", "--overwrite", settings=settings) == 2
    assert message in capsys.readouterr().err
    assert not (run_folder("gm3d", "bad") / "ckpt-last.pth").exists()


def test_a_resumed_run_keeps_its_teacher(no_pictures, capsys):
    """Another file under the teacher's name is refused."""
    assert pretrain("gm3d", "kept", settings=[*feature("gm3d"), "max_epoch=0"]) == 0
    path = Path(f"experiments/debug/{BASES['gm3d']}/teacher/ckpt-last.pth")
    content = path.read_bytes()
    changed = read_checkpoint(path)
    changed["base_model"]["mask_token"] += 1
    torch.save(changed, path)
    try:
        assert pretrain("gm3d", "kept", "--resume", settings=feature("gm3d")) == 2
    finally:
        path.write_bytes(content)
    assert "is not the teacher that this run began with" in capsys.readouterr().err
    assert pretrain("gm3d", "kept", "--resume", settings=feature("gm3d")) == 0


def test_a_teacher_by_its_name():
    """As after `--ckpts`: `mini` is that of the base method; the configuration keeps the name."""
    sizes = ["model.num_group=32", "model.group_size=32"]  # of the small weights
    settings = ["model.guidance.mode=feature", "model.guidance.teacher=mini", *sizes, "max_epoch=0"]
    assert pretrain("gm3d", "by-name", settings=settings) == 0
    guidance = read_checkpoint(run_folder("gm3d", "by-name") / "ckpt-last.pth")["config"]["model"]["guidance"]
    file = ROOT / "api" / "weights" / "mini-point-mae.safetensors"
    assert guidance["teacher"] == "mini" and guidance["teacher_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("method", BASES)
def test_two_processes_equal_one(method):
    """With shared batch statistics two processes see the losses of one: masks, teachers, ranking pairs and all."""
    drop = "model.transformer_config.drop_path_rate=0" if method == "gm3d" else "model.drop_path_rate=0"
    settings = [
        *feature(method),
        drop,
        "max_epoch=1",
        "log_every=1",
        "optimizer.kwargs.lr=1e-4",
    ]  # rounding hardly grows
    assert pretrain(method, "one", settings=settings) == 0
    recipe = ["--config", str(ROOT / "cfgs" / "debug" / f"{method}.yaml"), "--exp_name", "two", "--device", "cpu"]
    run_in_processes([*recipe, "--sync_bn", *flags([*SMALLER, *settings])])
    rows = {}
    for name in ("one", "two"):
        lines = (run_folder(method, name) / "metrics.jsonl").read_text().splitlines()
        rows[name] = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    assert len(rows["one"]) == 8
    # Two patches that are equally hard but for rounding may change places, which a batch of few pairs shows, and what follows differs a
    # little. Another mask, or another share of the batch in a loss, would differ by a hundredth and more.
    close = {"loss_feature": 1e-5, "loss_chamfer": 1e-5, "loss_ranking": 2e-4, "loss": 1e-4}
    for one, two in zip(rows["one"], rows["two"], strict=True):
        for key, tolerance in close.items():
            assert two[key] == pytest.approx(one[key], rel=tolerance if one["epoch"] == 0 else 1e-3), (
                one["epoch"],
                one["step"],
                key,
            )
