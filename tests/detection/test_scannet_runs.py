"""Detection on scenes in ScanNet's layout, with colours, from end to end; scenes that a detector cannot use."""

import contextlib
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main
from datasets import build_dataset
from datasets.prepare import main as prepare
from datasets.scannet import CLASSES
from datasets.scenes import MEAN_COLOR
from detection import predict
from detection.evaluate import check_set
from detection.inputs import draw_batch
from models import build_model
from tests.commands import rows
from tools.launch import load_recipe
from utils.errors import UserError
from utils.files import read_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "cfgs" / "detection" / "point-m2ae" / "debug.yaml"
FOLDER = Path("experiments/detection/point-m2ae/debug")
SCENES = Path("data/scannet/scannet_train_detection_data")
SET = "NAME: ScanNet, npoints: 512"
SETTINGS = [
    f"dataset.train={{{SET}}}", *(f"dataset.{name}={{{SET}, subset: val}}" for name in ("val", "test")), "model.num_classes=18",
    "total_bs=2", "max_epoch=1", "log_every=1",
]  # fmt: skip
COLORS = [*SETTINGS, "model.use_color=true"]


def detect(name, *flags, settings=COLORS, recipe=RECIPE):
    sets = [part for setting in settings for part in ("--set", setting)]
    return main.main(["--config", str(recipe), "--exp_name", name, "--device", "cpu", *flags, *sets])


def write_scenes():
    """Write four scenes to train on and two more; colours say how high a point is, and one scene has no boxes."""
    assert prepare(["fixtures", "scannet", "--out", "data", "--clouds", "4", "--points", "700"]) == 0
    for path in SCENES.glob("*_vert.npy"):
        vertices = np.load(path)
        vertices[:, 3:] = (60 * vertices[:, 2:3]).clip(0, 255).round()
        np.save(path, vertices)
    np.save(SCENES / "scene0002_00_bbox.npy", np.zeros((0, 7)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with the scenes and a run called `colors`."""
    folder = tmp_path_factory.mktemp("scannet")
    with contextlib.chdir(folder):
        write_scenes()
        assert detect("colors", "--scratch_model") == 0
    return folder


@pytest.fixture
def with_trained(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return str(FOLDER / "colors" / "ckpt-last.pth")


def test_training_and_evaluation_with_colors(with_trained):
    assert rows(FOLDER / "colors", "epoch")[0]["loss"] > 0
    kernel = read_checkpoint(with_trained)["base_model"]["pre_encoder.mlp_module.layer0.conv.weight"]
    assert kernel.shape == (16, 6, 1, 1)
    assert detect("tested", "--test", "--ckpts", with_trained) == 0
    (found,) = FOLDER.glob("tested/test_*/result.json")
    last = rows(FOLDER / "colors", "detection")[-1]
    assert json.loads(found.read_text())["results"]["AP25"] == pytest.approx(100 * last["ap25"], abs=1e-4)


@pytest.mark.parametrize("augment", [False, True])
def test_colors_stay_with_their_points(with_trained, augment):
    """Neither the cuboid nor mirrors nor turns change how high a point is."""
    clouds = build_dataset(load_recipe(RECIPE, overrides=COLORS).dataset.train)
    batch = draw_batch(clouds, [0, 3], [5, 6], augment=augment, color=True, device=torch.device("cpu"))
    shades = batch.colors.numpy() * 256 + MEAN_COLOR
    heights = np.rint((60 * batch.points[..., 2:].numpy()).clip(0, 255))
    assert heights.std() > 20
    np.testing.assert_allclose(shades, np.broadcast_to(heights, shades.shape), atol=1e-3)


def test_own_scenes_with_colors(with_trained, tmp_path, monkeypatch, capsys):
    """Points that are missing take their colours with them."""
    taken, original = [], predict.predict
    monkeypatch.setattr(
        predict, "predict", lambda run, model, inputs: taken.append(inputs) or original(run, model, inputs)
    )
    vertices = np.load(SCENES / "scene0001_00_vert.npy")
    gaps = np.insert(vertices, [0, 10], [[np.nan, 0, 0, 7, 7, 7]] * 2, axis=0)
    own = tmp_path / "own"
    own.mkdir()
    np.save(own / "a_vert.npy", vertices)
    np.save(own / "b_vert.npy", gaps)
    assert detect("own", "--predict", str(own), "--ckpts", with_trained) == 0
    whole, missing = taken
    assert torch.equal(whole.points, missing.points) and torch.equal(whole.colors, missing.colors)
    heights = np.rint((60 * whole.points[..., 2:].numpy()).clip(0, 255))
    np.testing.assert_allclose((whole.colors.numpy() * 256 + MEAN_COLOR)[..., :1], heights, atol=1e-3)
    (folder,) = FOLDER.glob("own/predict_*")
    assert (folder / "boxes" / "a_vert.npy.json").read_text() == (folder / "boxes" / "b_vert.npy.json").read_text()
    for name, array, message in (
        ("c_vert.npy", vertices[:, :3], "c_vert.npy: has shape (700, 3); this detector needs (n, 6)"),
        ("d_vert.npy", vertices + 200, "colours of d go from 200"),
        ("e.npy", vertices, "e.npy: this detector needs colours, which are read of _vert.npy files only"),
    ):
        np.save(own / name, array)
        assert detect("own", "--predict", str(own / name), "--ckpts", with_trained) == 2
        assert message in capsys.readouterr().err


def test_a_public_checkpoint_names_the_classes_of_scannet(with_trained, tmp_path):
    """It holds weights under `model`, the flags of its program, and no configuration."""
    weights = read_checkpoint(with_trained)["base_model"]
    public = {"model": weights, "args": Namespace(nqueries=32), "epoch": 1079, "best_val_metrics": {}}
    torch.save(public, tmp_path / "public.pth")
    assert (
        detect("public", "--predict", str(SCENES / "scene0001_00_vert.npy"), "--ckpts", str(tmp_path / "public.pth"))
        == 0
    )
    (found,) = FOLDER.glob("public/predict_*/boxes/*.json")
    assert {box["class"] for box in json.loads(found.read_text())["boxes"]} <= set(CLASSES)


def test_pre_training_takes_no_colors(with_trained, capsys):
    """Neither does it learn from them, nor does a detector with colours begin from it."""
    recipe = ROOT / "cfgs" / "pre-training" / "point-m2ae" / "scannet.yaml"
    assert detect("pre", settings=["model.use_color=true"], recipe=recipe) == 2
    assert "model.use_color: pre-training takes no colours; leave it out" in capsys.readouterr().err
    keys = load_recipe(RECIPE).model
    sizes = {name: getattr(keys, name) for name in ("preenc_npoints", "preenc_samples", "preenc_widths", "enc_dim")}
    sizes |= {"enc_ffn_dim": keys.enc_ffn_dim, "interim_samples": keys.interim_samples}
    model = build_model({"NAME": "Point_M2AE_Scenes", **sizes})
    save_checkpoint(Path("pre.pth"), {"base_model": model.state_dict()})
    assert detect("from", "--finetune_model", "--ckpts", "pre.pth") == 2
    message = capsys.readouterr().err
    assert "layer0.conv.weight: (16, 3, 1, 1) in the checkpoint, (16, 6, 1, 1) in the model" in message


def test_a_set_without_colors(with_trained):
    config = load_recipe(RECIPE, overrides=COLORS)
    clouds = replace(build_dataset(config.dataset.train), colors=None)
    with pytest.raises(UserError, match=r"ScanNet \(train\): has no colours; set model.use_color to false"):
        check_set(clouds, SimpleNamespace(config=config, args=None))


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        ("bbox", 0, "ScanNet (train): none of its 4 scenes has a box; there is nothing to detect"),
        ("points", 100, "scene0003_00 has 100 points, fewer than the 128 centres of the model; take it off the list"),
    ],
)
def test_scenes_that_cannot_be_used(part, count, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_scenes()
    if part == "bbox":
        for path in SCENES.glob("*_bbox.npy"):
            np.save(path, np.zeros((0, 7)))
    elif part == "points":
        for name in ("vert", "ins_label", "sem_label"):
            path = SCENES / f"scene0003_00_{name}.npy"
            np.save(path, np.load(path)[:count])
    assert detect("bad", "--scratch_model") == 2
    assert message in capsys.readouterr().err
    assert not (FOLDER / "bad" / "ckpt-last.pth").exists()
