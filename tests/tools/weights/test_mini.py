"""Small weights that are part of the package: every command takes `--ckpts mini`. A file made here stands in for them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import main_vis
from models import build_model
from tools import embed, quickstart
from tools.export.published import export_tensors
from tools.launch import load_recipe
from tools.weights import command, names
from utils import ROOT
from utils.config.merge import to_dict

MOST = 2 << 20  # bytes of one file
SMALL = ("dataset.train.clouds=64", "dataset.svm.train.clouds=64", "dataset.svm.test.clouds=40")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory) -> Path:
    """Return a folder with small weights as they ship: half precision, with their configuration."""
    folder = tmp_path_factory.mktemp("packaged")
    for method in ("point-m2ae", "point-mae"):
        config = load_recipe(f"cfgs/debug/{method}.yaml")
        torch.manual_seed(1)
        saved = {"base_model": build_model(config.model).state_dict(), "config": to_dict(config), "epoch": 3}
        torch.save(saved, folder / "run.pth")
        export_tensors(str(folder / "run.pth"), folder / f"mini-{method}.safetensors", half=True)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, packaged):
    monkeypatch.setattr(names, "PACKAGED", packaged)
    monkeypatch.chdir(tmp_path)


def flags(*given, settings=SMALL):
    return [*given, "--ckpts", "mini", "--device", "cpu", *(text for value in settings for text in ("--set", value))]


def test_what_ships_is_small_and_says_what_it_is():
    for name, method in names.MINI.items():
        path = ROOT / "api" / "weights" / f"{name}.safetensors"
        assert path.stat().st_size <= MOST
        found = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
        assert (
            found["format"] == "m2ae"
            and method.replace("-", "_") in json.loads(found["config"])["model"]["NAME"].lower()
        )


def test_features():
    rng = np.random.default_rng(0)
    Path("clouds").mkdir()
    for number in range(3):
        np.save(f"clouds/{number}.npy", rng.normal(size=(300, 3)).astype(np.float32))
    assert embed.main(["--ckpts", "mini", "--input", "clouds", "--out", "a.npz", "--device", "cpu"]) == 0
    found = np.load("a.npz")
    assert found["features"].shape == (3, 96) and found["method"] == "point-m2ae"
    assert embed.main(["--ckpts", "mini-point-mae", "--input", "clouds", "--out", "b.npz", "--device", "cpu"]) == 0
    assert np.load("b.npz")["method"] == "point-mae"


def test_check(capsys):
    assert command.main(["check", "mini", "mini-point-mae"]) == 0
    shown = capsys.readouterr().out
    assert "a checkpoint of this program: Point_M2AE, epoch 3" in shown and "Point_MAE, epoch 3" in shown
    assert shown.count("loads: ") == 2


def test_reconstruction():
    assert main_vis.main(flags("--config", "cfgs/debug/point-m2ae.yaml", "--exp_name", "vis", "--count", "2")) == 0
    assert list(Path("experiments/debug/point-m2ae").rglob("*.html"))


def test_linear_svm():
    recipe = ("--config", "cfgs/debug/point-mae.yaml", "--test_svm", "own", "--exp_name", "svm")
    assert main.main(flags(*recipe)) == 0
    (result,) = Path("experiments").rglob("result.json")
    assert json.loads(result.read_text())["checkpoint"].endswith("mini-point-mae.safetensors")


def test_fine_tuning():
    recipe = ("--config", "cfgs/fine-tuning/point-m2ae/debug.yaml", "--finetune_model", "--exp_name", "tune")
    settings = ("dataset.train.clouds=64", "dataset.val.clouds=40", "max_epoch=1", "scheduler.kwargs.epochs=1")
    assert main.main(flags(*recipe, settings=settings)) == 0
    assert list(Path("experiments/fine-tuning").rglob("ckpt-last.pth"))


def test_the_quickstart_ends_with_a_comparison(capsys, monkeypatch):
    settings = (*SMALL, "max_epoch=1", "scheduler.kwargs.epochs=1")
    given = [text for value in settings for text in ("--set", value)]
    recipe = ["--config", "cfgs/debug/point-m2ae.yaml", "--exp_name", "quick", "--device", "cpu"]
    assert main.main([*recipe, *given]) == 0
    capsys.readouterr()
    folder = "experiments/debug/point-m2ae/quick"
    assert quickstart.main([folder]) == 0
    line = capsys.readouterr().out
    assert "untrained" in line and "this run" in line
    # The run's own checkpoint gives its own number.
    assert quickstart.main([folder, "--ckpts", f"{folder}/ckpt-last.pth"]) == 0
    shown = dict(re.findall(r"(this run|small weights) ([\d.]+) %", capsys.readouterr().out))
    assert shown["this run"] == shown["small weights"]
    monkeypatch.setattr(names, "PACKAGED", Path("nowhere"))
    assert (
        quickstart.main([folder]) == 0
        and "small weights are not compared (mini-point-m2ae: " in capsys.readouterr().out
    )
    assert quickstart.main(["elsewhere"]) == 2 and "run make quickstart first" in capsys.readouterr().err
