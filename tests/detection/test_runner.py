"""Detection from end to end: trained, resumed, evaluated, own scenes; what it leaves behind; bad input."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from datasets import build_dataset
from datasets.batches import Batch
from detection import runner
from detection.runner import ObjectDetection
from models import build_model, load_weights
from tests.commands import check_exact_resume, rows
from tools.launch import open_run
from tools.supervised import Sets
from utils.config.cli import parse_args
from utils.files import read_checkpoint

ROOT = Path(__file__).parents[2]
FOLDER = Path("experiments/detection/point-m2ae/debug")
SMALLER = ["dataset.train.scenes=14", "max_epoch=2", "log_every=1"]
SMALLER += [f"dataset.{entry}.scenes=3" for entry in ("val", "test")]


def arguments(name, *flags, settings=SMALLER):
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = ROOT / "cfgs" / "detection" / "point-m2ae" / "debug.yaml"
    return ["--config", str(recipe), "--exp_name", name, "--device", "cpu", *flags, *sets]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with one uninterrupted run called `whole`."""
    folder = tmp_path_factory.mktemp("detection")
    with contextlib.chdir(folder):
        assert main.main(arguments("whole", "--scratch_model")) == 0
    return folder


@pytest.fixture
def with_whole(whole, monkeypatch):
    monkeypatch.chdir(whole)


def test_a_run_leaves_everything_behind(with_whole):
    folder = FOLDER / "whole"
    names = ("ckpt-last.pth", "config.yaml", "metrics.jsonl", "report.html", "gallery.png", "ap.csv", "result.json")
    for name in names:
        assert (folder / name).stat().st_size > 0, name
    epochs, evaluated = rows(folder, "epoch"), rows(folder, "detection")
    assert [row["epoch"] for row in epochs] == [row["epoch"] for row in evaluated] == [0, 1]
    parts = ("loss_giou", "loss_sem_cls", "loss_center", "loss_size")
    assert all(0 < epochs[0][name] < epochs[0]["loss"] for name in parts)  # of the last layer; the total has all
    assert set(evaluated[0]) >= {"ap25", "ap50", "ar25", "ar50"}
    last = read_checkpoint(folder / "ckpt-last.pth")
    assert last["config"]["class_names"][:2] == ["bathtub", "bed"] and not any(
        "criterion" in key for key in last["base_model"]
    )
    page = (folder / "report.html").read_text()
    for words in ("Average precision", "By class", "By size", "Precision and recall", "Scenes with the lowest AP25"):
        assert words in page, words
    assert {"AP25, last epoch", "AP50, last epoch"} <= set(json.loads((folder / "result.json").read_text())["results"])


def test_resume_is_exact(with_whole, no_pictures, monkeypatch):
    """Stopped in the second epoch, whose fourth and last step has two scenes."""

    def start(name, *flags):
        return arguments(name, "--scratch_model", *flags)

    check_exact_resume(
        monkeypatch, runner, start, FOLDER, at_call=6, kinds=("step", "epoch", "detection"), name="draw_batch"
    )
    assert [row["step"] for row in rows(FOLDER / "whole", "step")] == [0, 1, 2, 3] * 2


def test_test_agrees_with_the_last_validation(with_whole, capsys):
    checkpoint = str(FOLDER / "whole" / "ckpt-last.pth")
    assert main.main(arguments("tested", "--test", "--ckpts", checkpoint)) == 0
    (found,) = FOLDER.glob("tested/test_*/result.json")
    result = json.loads(found.read_text())["results"]
    assert result["AP25"] == pytest.approx(100 * rows(FOLDER / "whole", "detection")[-1]["ap25"], abs=1e-4)
    voted = arguments("voted", "--test", "--vote", "--vote_rounds", "2", "--ckpts", checkpoint)
    assert main.main(voted) == 0
    (found,) = FOLDER.glob("voted/test_*/result.json")
    assert "AP25, standard deviation over 2 draws" in json.loads(found.read_text())["results"]


def test_own_scenes(with_whole, tmp_path, capsys):
    scenes = build_dataset(
        {"NAME": "SyntheticScenes", "scenes": 2, "N_POINTS": 2000, "npoints": 1024, "subset": "test"}
    )
    own = tmp_path / "own"
    own.mkdir()
    for row in range(2):
        np.save(own / f"scene{row}_vert.npy", np.hstack([scenes.points[row], scenes.colors[row]]).astype(np.float32))
        np.save(own / f"scene{row}_bbox.npy", np.zeros((1, 7)))  # next to it in VoteNet's layout, and no scene
    checkpoint = str(FOLDER / "whole" / "ckpt-last.pth")
    assert main.main(arguments("own", "--predict", str(own), "--ckpts", checkpoint)) == 0
    (folder,) = FOLDER.glob("own/predict_*")
    assert sorted(path.name for path in (folder / "boxes").iterdir()) == [
        f"scene{row}_vert.npy.{kind}" for row in range(2) for kind in ("json", "ply")
    ]
    for box in json.loads((folder / "boxes" / "scene0_vert.npy.json").read_text())["boxes"]:
        assert box["class"] in scenes.class_names and min(box["size"]) > 0 and len(box["center"]) == 3
    flags = ["--predict", str(own / "millimetres.npy"), "--ckpts", checkpoint]
    np.save(own / "millimetres.npy", 1000 * scenes.points[0])
    assert main.main(arguments("own", *flags, "--up", "z")) == 0
    assert "millimetres.npy: has coordinates up to" in capsys.readouterr().err
    assert main.main(arguments("own", *flags, "--category", "chair")) == 2
    np.savetxt(own / "few.xyz", scenes.points[0, :50])
    assert main.main(arguments("few", "--predict", str(own / "few.xyz"), "--ckpts", checkpoint)) == 2
    assert "few.xyz: has 50 points, fewer than the 128 centres" in capsys.readouterr().err


def test_a_pre_trained_encoder_is_taken_over(with_whole, capsys):
    """Pre-training on scenes gives the detector its two encoders, and nothing else."""
    sets = ["dataset.train.NAME=SyntheticScenes", "dataset.train.N_POINTS=2000", "dataset.train.npoints=1024"]
    sets += ["dataset.train.scenes=8", "max_epoch=1", "log_every=1", "total_bs=4", "scheduler.kwargs.epochs=2"]
    sets += ["scheduler.kwargs.initial_epochs=1"]
    small = [
        "preenc_npoints=128",
        "preenc_samples=16",
        "preenc_widths=[16,32]",
        "enc_dim=48",
        "enc_ffn_dim=48",
        "interim_samples=8",
    ]
    sets += [f"model.{key}" for key in small]
    flags = [part for setting in sets for part in ("--set", setting)]
    recipe = ROOT / "cfgs" / "pre-training" / "point-m2ae" / "scannet.yaml"
    assert main.main(["--config", str(recipe), "--exp_name", "a", "--device", "cpu", *flags]) == 0
    folder = Path("experiments/pre-training/point-m2ae/scannet/a")
    assert "detection/point-m2ae/scannet.yaml --finetune_model" in capsys.readouterr().err
    assert rows(folder, "epoch")[-1]["loss"] > 0 and (folder / "report.html").exists()
    checkpoint = folder / "ckpt-last.pth"
    run = open_run(parse_args(arguments("b", "--finetune_model", "--ckpts", str(checkpoint))), torch.device("cpu"))
    assert run.config.model.enc_dropout == 0.3  # of the detector's recipe; pre-training has 0.1
    model = build_model(run.config.model)
    report = load_weights(model, checkpoint)
    assert set(report.used) == {key for key in model.state_dict() if key.startswith(("pre_encoder.", "encoder."))}
    assert not report.unexpected and len(report.ignored) > 5


def test_two_processes_draw_what_one_does(with_whole, monkeypatch):
    """Each process takes its part of the seeds, and so of the scenes, of the global batch."""
    run = open_run(parse_args(arguments("draws", "--scratch_model")), torch.device("cpu"))
    clouds = build_dataset(run.config.dataset.train)
    task = ObjectDetection(run, ObjectDetection.build_model(run), Sets(clouds, clouds))
    rows_of = torch.arange(4)
    batch = Batch(torch.zeros(4, 1, 3), None, rows_of, step=1)
    alone = task.prepare(batch, 0)["inputs"]
    for place in range(2):
        monkeypatch.setattr("detection.inputs.world_size", lambda: 2)
        monkeypatch.setattr("detection.inputs.rank", lambda place=place: place)
        own = slice(2 * place, 2 * place + 2)
        part = task.prepare(Batch(torch.zeros(2, 1, 3), None, rows_of[own], step=1), 0)["inputs"]
        assert torch.equal(part.points, alone.points[own])
        assert torch.equal(part.targets["gt_box_centers"], alone.targets["gt_box_centers"][own])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.num_classes=18", "has 12 classes; use --set model.num_classes=12"),
        ("select=held_out", "a scene has several; use --select last"),
        ("augmentation=rotate", "rotate does not know boxes; choose cuboid or none"),
        ("model.preenc_npoints=1500", "1024 points a scene are fewer than the 1500 centres"),
        ("model.nqueries=500", "500 of 64 tokens"),
        ("model.enc_type=maskedv2", "'maskedv2' is unknown; choose vanilla or masked"),
        ("dataset.train.NAME=Synthetic", "scenes"),
    ],
)
def test_bad_settings(setting, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments("bad", "--scratch_model", settings=[*SMALLER, setting])) == 2
    assert message in capsys.readouterr().err
