"""The debug recipes on tiny sets in the published layouts: one epoch of fine-tuning, `--test`, `--vote`, one fold of few-shot, parts."""

import json
from pathlib import Path

import pytest
import torch

import main
from datasets import prepare
from extensions import fps

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
SETS = {
    "ModelNet": ("NAME: ModelNet, DATA_PATH: data/ModelNet/modelnet40_normal_resampled, N_POINTS: 256", 40),
    "ScanObjectNN": ("NAME: ScanObjectNN_hardest, ROOT: data/ScanObjectNN/main_split, SPLIT: PB", 15),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a data root with ModelNet, ScanObjectNN and few-shot folds of 256 points."""
    fps(torch.zeros(1, 1, 3), 1)  # the ops, before the cache is another one
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M2AE_CACHE", str(folder / "cache"))
        for name in (*SETS, "ModelNetFewShot", "ShapeNetPart"):
            assert (
                prepare.main(["fixtures", name, "--out", str(folder / "data"), "--clouds", "32", "--points", "256"])
                == 0
            )
        yield folder


def run(tiny, monkeypatch, recipe, *flags):
    monkeypatch.chdir(tiny)
    monkeypatch.setenv("M2AE_CACHE", str(tiny / "cache"))
    return main.main(
        ["--config", str(ROOT / "cfgs" / recipe), "--device", "cpu", "--data_root", str(tiny / "data"), *flags]
    )


def rows(folder, kind):
    return [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


@pytest.mark.parametrize("name", SETS)
def test_fine_tuning_testing_and_voting(tiny, monkeypatch, capsys, name):
    keys, classes = SETS[name]
    entries = [
        f"dataset.{entry}={{{keys}, subset: {'train' if entry == 'train' else 'test'}}}"
        for entry in ("train", "val", "test")
    ]
    sets = [
        part
        for text in (*entries, f"model.cls_dim={classes}", "max_epoch=1", "total_bs=16")
        for part in ("--set", text)
    ]
    recipe = "fine-tuning/point-mae/debug.yaml"
    flags = ("--exp_name", name, *sets)
    assert run(tiny, monkeypatch, recipe, "--finetune_model", "--scratch_model", *flags) == 0
    folder = tiny / "experiments" / "fine-tuning" / "point-mae" / "debug" / name
    judged = rows(folder, "val")
    assert [row["epoch"] for row in judged] == [1]  # epoch 0 is not judged, as published
    assert run(tiny, monkeypatch, recipe, "--test", "--vote", "--ckpts", str(folder / "ckpt-last.pth"), *flags) == 0
    log = capsys.readouterr().err
    assert f"accuracy {100 * judged[-1]['accuracy']:.2f} %" in log and "with voting: " in log
    listed = (sorted(folder.glob("test_*"))[0] / "predictions.txt").read_text().splitlines()
    assert len(listed) == 1 + 16


def test_one_fold_of_few_shot(tiny, monkeypatch):
    sets = ("--set", "max_epoch=1", "--set", "total_bs=25")
    flags = ("--exp_name", "few", "--finetune_model", "--scratch_model", "--way", "5", "--shot", "10", "--fold", "0")
    assert run(tiny, monkeypatch, "few-shot/point-mae/debug.yaml", *flags, *sets) == 0
    folder = tiny / "experiments" / "few-shot" / "point-mae" / "debug" / "few"
    found = list(folder.rglob("metrics.jsonl"))
    assert len(found) == 1 and len(rows(found[0].parent, "epoch")) == 2
    right = 100 * rows(found[0].parent, "val")[-1]["accuracy"]  # of twenty test clouds a way
    assert right == pytest.approx(round(right))


def test_one_epoch_of_part_segmentation_testing_and_voting(tiny, monkeypatch, capsys):
    sets = [
        part for text in ("max_epoch=1", "model.num_parts=50", "model.num_categories=16") for part in ("--set", text)
    ]
    for entry, subset in (("train", "trainval"), ("val", "test"), ("test", "test")):
        keys = f"NAME: ShapeNetPart, subset: {subset}, npoints: 256"
        sets += ["--set", f"dataset.{entry}={{{keys}}}"]
    recipe, flags = "segmentation/point-mae/debug.yaml", ("--exp_name", "parts", *sets)
    assert run(tiny, monkeypatch, recipe, "--scratch_model", *flags) == 0
    folder = tiny / "experiments" / "segmentation" / "point-mae" / "debug" / "parts"
    judged = rows(folder, "parts")
    assert [row["epoch"] for row in judged] == [0] and 0 < judged[0]["class_miou"] < 1
    assert run(tiny, monkeypatch, recipe, "--test", "--vote", "--ckpts", str(folder / "ckpt-last.pth"), *flags) == 0
    log = capsys.readouterr().err
    assert f"instance mIoU {100 * judged[0]['instance_miou']:.2f} %" in log and "with voting: instance mIoU" in log
    table = (folder / "ious.csv").read_text()
    assert "Motorbike,part 6," in table and table.count("\n") == 1 + 16 + 50
