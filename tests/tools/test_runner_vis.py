"""`main_vis.py`: clouds of a data set and of one's own files, masked and rebuilt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main_vis
from datasets.formats.cloud_files import read_cloud
from models import build_model
from models.registry import MODELS
from utils.config.load import load_config
from utils.files import save_checkpoint

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "cfgs" / "debug" / "point-m2ae.yaml"
FOLDER = Path("experiments/debug/point-m2ae")
POINTS = np.random.default_rng(0).normal(size=(300, 3)).round(4)
TEST_SET = [
    "dataset.test.NAME=Synthetic", "dataset.test.subset=test", "dataset.test.clouds=20", "dataset.test.npoints=200",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from datasets import DATASETS

    torch.manual_seed(0)
    model = build_model(load_config(RECIPE, models=MODELS, datasets=DATASETS).model)
    path = tmp_path_factory.mktemp("weights") / "ckpt.pth"
    save_checkpoint(path, {"base_model": model.state_dict()})
    return path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(checkpoint, *flags):
    return [
        "--test", "--ckpts", str(checkpoint), "--config", str(RECIPE), "--exp_name", "vis", "--device", "cpu", *flags,
    ]  # fmt: skip


def outputs(name="vis"):
    [folder] = (FOLDER / name).glob("vis_*")
    return folder, sorted(entry for entry in folder.iterdir() if entry.is_dir())


def text(path):
    return np.loadtxt(path, delimiter=";")


def test_clouds_of_the_training_set_where_there_is_no_other(checkpoint, capsys):
    assert main_vis.main(arguments(checkpoint, "--count", "3")) == 0
    assert "clouds of the training set" in capsys.readouterr().err
    folder, clouds = outputs()
    assert [cloud.name[:10] for cloud in clouds] == ["000_train_", "001_train_", "002_train_"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert checkpoint.name in page and "Chamfer distance" in page and "patch centres" in page
    assert (folder / "gallery.png").stat().st_size > 0
    results = json.loads((folder / "result.json").read_text())["results"]
    apart = [
        torch.cdist(*(torch.from_numpy(text(cloud / name)) for name in ("gt.txt", "dense_points.txt"))) ** 2
        for cloud in clouds
    ]
    expected = [float(square.amin(0).mean() + square.amin(1).mean()) for square in apart]
    assert results["clouds"] == 3
    assert results["Chamfer distance x 1000, mean over clouds"] == pytest.approx(1000 * sum(expected) / 3, rel=1e-4)
    for cloud in clouds:
        assert {entry.name for entry in cloud.iterdir()} == {
            "input.ply", "visible.ply", "rebuilt.ply", "gt.txt", "vis.txt", "dense_points.txt",
        }  # fmt: skip
        given, seen, rebuilt = (text(cloud / name) for name in ("gt.txt", "vis.txt", "dense_points.txt"))
        assert given.shape == (256, 3) and 0 < len(seen) < 256 and len(rebuilt) <= 256
        # What was visible was given, and part of what comes out was neither.
        assert {tuple(row) for row in seen} < {tuple(row) for row in given}
        assert not {tuple(row) for row in rebuilt} <= {tuple(row) for row in given}
        np.testing.assert_allclose(read_cloud(cloud / "visible.ply"), seen, atol=1e-6)
        np.testing.assert_allclose(read_cloud(cloud / "rebuilt.ply"), rebuilt, atol=1e-6)


def test_test_set_and_seed(checkpoint):
    sets = [part for setting in TEST_SET for part in ("--set", setting)]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main_vis.main([*arguments(checkpoint, *sets, "--seed", seed, "--count", "2"), "--exp_name", name]) == 0
    found = {name: outputs(name)[1] for name in "abc"}
    assert all("_test_" in cloud.name for clouds in found.values() for cloud in clouds)
    seen = {name: text(clouds[1] / "vis.txt") for name, clouds in found.items()}
    assert np.array_equal(seen["a"], seen["b"]) and not np.array_equal(seen["a"], seen["c"])
    assert len(text(found["a"][0] / "gt.txt")) == 200


def test_own_clouds(checkpoint, tmp_path):
    """More points than the recipe takes are sampled, fewer are taken as they are; both fill the unit sphere."""
    folder = tmp_path / "own"
    folder.mkdir()
    np.save(folder / "many.npy", POINTS + 500_000)
    np.savetxt(folder / "few.xyz", POINTS[:100])
    (folder / "notes.md").write_text("not a cloud")
    assert main_vis.main(arguments(checkpoint, "--input", str(folder))) == 0
    clouds = outputs()[1]
    assert [cloud.name for cloud in clouds] == ["000_few", "001_many"]
    few, many = (text(cloud / "gt.txt") for cloud in clouds)
    assert few.shape == (100, 3) and many.shape == (256, 3)
    for points in (few, many):
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(points, axis=1).max(), 1, atol=1e-6)
    centred = POINTS[:100] - POINTS[:100].mean(axis=0)
    np.testing.assert_allclose(few, centred / np.linalg.norm(centred, axis=1).max(), atol=1e-6)


def test_refused(checkpoint, capsys, tmp_path):
    def refused(argv, *words):
        assert main_vis.main(argv) == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: ") and all(word in message for word in words), message

    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "tiny.npy", POINTS[:20])
    refused(arguments(checkpoint)[3:], "--ckpts")
    refused(arguments(tmp_path / "none.pth"), "none.pth")
    refused(arguments(checkpoint, "--count", "0"), "--count 0")
    refused(arguments(checkpoint, "--resume"), "--resume", "main.py")
    refused(arguments(checkpoint, "--test_svm", "synthetic"), "--test_svm", "main.py")
    refused(arguments(checkpoint, "--launcher", "pytorch"), "--launcher")
    refused(arguments(checkpoint, "--input", "nowhere"), "nowhere", ".ply")
    refused(arguments(checkpoint, "--input", "empty"), "empty", ".ply")
    refused(arguments(checkpoint, "--input", str(RECIPE)), "point-m2ae.yaml", ".ply")
    refused(arguments(checkpoint, "--input", "tiny.npy"), "tiny.npy", "20", "32 groups")
    refused(arguments(checkpoint, "--set", "model.encoder_depths=[2,1,1]"), "ckpt.pth")
    classifier = tmp_path / "classifier.yaml"
    classifier.write_text("model:\n  NAME: Point_M2AE_ModelNet40\ntotal_bs: 2\n")
    refused([*arguments(checkpoint), "--config", str(classifier)], "Point_M2AE_ModelNet40", "cfgs/pre-training/")
    assert not list(FOLDER.glob("*/vis_*"))
