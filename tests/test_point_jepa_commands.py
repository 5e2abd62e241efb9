"""Point-JEPA's published command lines, one after the other at a small size, each from what those before it left."""

import json
from functools import partial
from pathlib import Path

import pytest

from datasets.preparing.fixtures import Size, write_fixture
from datasets.preparing.layouts import find
from main import dispatch, run_command
from tools.published.point_jepa import parse

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]

# Fixture -> clouds and points of each; 0 points are as many as published.
SETS = {
    "ShapeNet": (8, 0),
    "ModelNet40_SVM": (40, 0),
    "ModelNet": (40, 1024),
    "Scan_PB": (30, 0),  # and the other sets of ScanObjectNN
    "ModelNetFewShot": (20, 0),
    "ShapeNetPart": (16, 512),
}
CONFIGS = "configs/Point-JEPA"
TASK, PARTS, VOTING = "pointjepa.tasks.classification", "pointjepa.tasks.part_segmentation", "pointjepa.eval.voting"
NARROW = (
    "--model.tokenizer_num_groups 16 --model.tokenizer_group_size 16 --model.encoder_dim 48 --model.encoder_depth 2 "
)
NARROW += "--model.encoder_heads 3 --model.predictor_embed_dim 24 --model.predictor_depth 1 --model.predictor_heads 3 "
NARROW += "--model.ema_tau_epochs 1 --trainer.max_epochs 1 --data.batch_size 4"
SHORT = "--model.encoder_unfreeze_epoch 1 --trainer.max_epochs 2 --data.batch_size 8"
SETTINGS = ["log_every=1"]
STORED = [f"dataset.{entry}.N_POINTS=1024" for entry in ("train", "val", "test")]
FEW_POINTS = [f"dataset.{entry}.npoints=256" for entry in ("train", "val", "test")]
SMALL_HEAD = ["model.prop_widths=[48, 32]", "model.head_widths=[64, 32]", "model.taps=[0, 1]"]


def run(program, line, name, settings=()):
    """Run a published command line; returns the results that it wrote, of all its folders, and the folder of the last."""
    flags = ["--device", "cpu", "--data_root", "sets", "--exp_name", name]
    flags += [part for text in [*SETTINGS, *settings] for part in ("--set", text)]
    before = set(Path("experiments").rglob("result.json"))
    assert run_command([*line.split(), *flags], partial(parse, program), dispatch) == 0
    [written] = set(Path("experiments").rglob("result.json")) - before
    return json.loads(written.read_text())["results"], written.parent


def test_every_published_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in SETS.items():
        write_fixture(find(name)[0], Path("sets"), Size(*size))

    found, folder = run("pointjepa", f"fit -c {CONFIGS}/pretraining/shapenet.yaml {NARROW}", "pre")
    assert any("linear SVM on ModelNet40_SVM" in name for name in found)
    start = f"--model.pretrained_ckpt_path {folder}/ckpt-last.pth"

    found, _ = run("pointjepa", f"validate -c {CONFIGS}/pretraining/shapenet.yaml {start}", "svm")
    assert any(name.startswith("linear SVM") for name in found)

    classification = f"fit --config {CONFIGS}/classification"
    command = f"{classification}/modelnet40.yaml {start} --seed_everything 3 {SHORT}"
    found, tuned = run(TASK, command, "modelnet", STORED)
    assert "accuracy, last epoch" in found and "seed: 3" in (tuned / "config.yaml").read_text()

    scan = f"{classification}/scanobjectnn.yaml"
    places = set()
    for name in ("", "_scanobjectnn_obj_bg.yaml", "_scanobjectnn_obj_only.yaml"):
        more = f" --config {CONFIGS}/classification/{name}" if name else ""
        found, folder = run(TASK, f"{scan}{more} {start} {SHORT}", "scan")
        assert "accuracy, last epoch" in found
        places.add(folder.parent.name)
    assert places == {"scan_pb", "scan_obj-bg", "scan_obj"}

    few = f"{classification}/modelnet_fewshot.yaml {start} --data.way 5 --data.shot 10 --data.fold 0 {SHORT}"
    assert "accuracy, last epoch" in run(TASK, few, "few")[0]

    command = f"fit --config {CONFIGS}/segmentation/shapenetpart.yaml {start} {SHORT}"
    found, _ = run(PARTS, command, "parts", [*FEW_POINTS, *SMALL_HEAD])
    assert any(name.startswith("instance mIoU") for name in found)

    command = f"--config {CONFIGS}/classification/modelnet40.yaml --finetuned_ckpt_path {tuned}/ckpt-last.pth"
    found, _ = run(VOTING, f"{command} --seed_everything 3 --vote_num 10 --vote_iterations 2", "votes", STORED)
    assert any("voting" in name for name in found)
