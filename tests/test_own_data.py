"""Own data from a folder of files to predictions of new ones, by the commands that each command prints, and what cannot be used."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import main_vis
from datasets import build_dataset, prepare
from datasets.synthetic import CATEGORIES
from models import build_model
from tools import embed
from tools.launch import load_recipe
from utils import ROOT
from utils.config.yaml import read_yaml

pytestmark = pytest.mark.usefixtures("no_pictures")

CLASSES = sorted(CATEGORIES)[:10]
COMMANDS = {"main.py": main.main, "datasets.prepare": prepare.main, "tools.embed": embed.main}


@pytest.fixture(scope="module")
def shapes():
    """Return 200 built-in clouds of ten classes, their up axis moved to z."""
    clouds = build_dataset(
        {"NAME": "Synthetic", "clouds": 200, "N_POINTS": 512, "categories": CLASSES, "rotate": False}
    )
    return clouds, clouds.points[:, :, [2, 0, 1]]


def tetrahedra(points, size=0.01):
    """Return a mesh with a small tetrahedron at each point: vertices and triangles."""
    corners = size * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    sides = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    vertices = (points[:, None] + corners).reshape(-1, 3)
    return vertices, (4 * np.arange(len(points))[:, None, None] + sides).reshape(-1, 3)


def write_off(path, points):
    vertices, faces = tetrahedra(points)
    rows = [" ".join(f"{value:.5f}" for value in row) for row in vertices]
    rows += ["3 " + " ".join(map(str, face)) for face in faces]
    path.write_text(f"OFF\n{len(vertices)} {len(faces)} 0\n" + "\n".join(rows) + "\n")


def write_obj(path, points):
    vertices, faces = tetrahedra(points)
    rows = ["v " + " ".join(f"{value:.5f}" for value in row) for row in vertices]
    path.write_text("\n".join([*rows, *("f " + " ".join(map(str, face + 1)) for face in faces)]) + "\n")


def write_ply(path, points):
    vertices, faces = tetrahedra(points)
    head = (
        f"ply\nformat ascii 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
    )
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    rows = [" ".join(f"{value:.5f}" for value in row) for row in vertices]
    path.write_text(head + "\n".join([*rows, *("3 " + " ".join(map(str, face)) for face in faces)]) + "\n")


WRITERS = {
    ".off": write_off,
    ".obj": write_obj,
    ".ply": write_ply,
    ".npy": np.save,
    ".xyz": lambda path, points: np.savetxt(path, points, fmt="%.5f"),
}


def write_shapes(folder, clouds, points, rows):
    for row in rows:
        ending = list(WRITERS)[row // len(CLASSES) % len(WRITERS)]
        path = folder / clouds.class_names[clouds.labels[row]] / f"shape {row:03d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[ending](path, points[row])


def commands_in(text):
    """Return the commands that an output prints, in order."""
    found = re.findall(r"python (?:-m )?(?:main\.py|datasets\.prepare|tools\.embed) .*", text)
    return [re.split(r"   # ", line)[0] for line in found]


def run(command, capsys):
    """Run a printed command; returns the ones that it prints."""
    words = shlex.split(command)
    name = words[2] if words[1] == "-m" else words[1]
    capsys.readouterr()
    assert COMMANDS[name](words[3 if words[1] == "-m" else 2 :]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    return commands_in(captured.out + "\n" + captured.err), captured.out + captured.err


def one(commands, *words):
    """Return the first command with these words."""
    return next(command for command in commands if all(word in command for word in words))


@pytest.mark.parametrize("epochs", [1, pytest.param(0, marks=pytest.mark.slow)])  # 0: as many as the recipe says
def test_from_meshes_to_predictions_in_six_commands(tmp_path, monkeypatch, capsys, shapes, epochs):
    monkeypatch.chdir(tmp_path)
    clouds, points = shapes
    write_shapes(Path("shapes"), clouds, points, range(190))
    write_shapes(Path("new"), clouds, points, range(190, 200))
    printed, said = run("python -m datasets.prepare convert shapes --up z --points 512 --out data/own", capsys)
    assert Path("data/own.png").stat().st_size > 1000 and "data/own.png" in said and "mean extents" in said
    # The printed hint: a model for a trial.
    printed, said = run(one(printed, "recipe") + f" --size tiny --epochs {epochs}", capsys)
    assert "10 classes" in said and "150 training" in said
    printed, _ = run(one(printed, "pre-training.yaml"), capsys)
    assert "--test_svm" in one(printed, "linear-svm.yaml")
    printed, said = run(one(printed, "--finetune_model"), capsys)
    folder = Path("experiments/own/fine-tuning/own")
    assert (folder / "report.html").is_file()
    command = one(printed, "tools.embed")
    assert "--input data/own" in command
    run(command.replace("--input data/own", "--input new --up z"), capsys)
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    right = sum(row["name"] == Path(row["file"]).parts[0] for row in rows)
    assert epochs or right >= 3  # of ten; chance is one


def fill(folder, classes, count, points=300, first=0):
    """Write some clouds of each class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            draw = np.random.default_rng(100 * number + row + first)
            np.save(folder / name / f"{first + row}.npy", draw.normal(size=(points, 3)) * (1, 1 + number, 1))


def refused(argv, capsys, *words, command=prepare.main):
    capsys.readouterr()
    assert command(argv) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("set")


def recipes(folder, capsys, *flags):
    capsys.readouterr()
    assert prepare.main(["recipe", str(folder), "--size", "tiny", *flags]) == 0
    return capsys.readouterr().out


def test_recipes_fit_the_set(folder, capsys):
    fill(folder, ["a", "b", "c"], 8)
    said = recipes(folder, capsys, "--method", "point-mae", "--epochs", "7")
    keys = read_yaml("recipes/set/fine-tuning.yaml")
    # 18 training clouds: batches of eight, two an epoch.
    assert keys["model"]["cls_dim"] == 3 and keys["total_bs"] == 8 and keys["class_names"] == ["a", "b", "c"]
    assert keys["max_epoch"] == keys["scheduler"]["kwargs"]["epochs"] == 7
    assert "fewer" not in said and "--way 3 --shot 6" in said
    for name in ("pre-training", "linear-svm", "fine-tuning", "few-shot"):
        config = load_recipe(f"recipes/set/{name}.yaml")
        assert name == "few-shot" or config.dataset.train.DATA_PATH == "set"
    encoder, classifier = (load_recipe(f"recipes/set/{name}.yaml").model for name in ("pre-training", "fine-tuning"))
    assert encoder.transformer_config.trans_dim == classifier.trans_dim and encoder.num_group == classifier.num_group
    refused(["recipe", "set", "--size", "tiny"], capsys, "exists", "--overwrite")


@pytest.mark.parametrize("method", ["point-m2ae", "point-mae", "i2p-mae", "inter-mae", "gm3d", "gm3d-point-m2ae"])
@pytest.mark.parametrize("size", ["tiny", "small", "published"])
def test_every_method_and_size_gives_recipes_that_load(folder, capsys, method, size):
    fill(folder, ["a", "b"], 4, points=64)
    assert prepare.main(["recipe", "set", "--size", size, "--method", method]) == 0
    encoder, classifier = (load_recipe(f"recipes/set/{name}.yaml").model for name in ("pre-training", "fine-tuning"))
    flat = {**vars(encoder), **vars(getattr(encoder, "transformer_config", encoder))}
    # Sizes of groups give no weight its shape, and I2P-MAE's are published otherwise for fine-tuning.
    same = ("num_groups", "encoder_dims", "encoder_depths", "trans_dim", "depth", "num_group")
    for key in same:
        assert not (key in flat and hasattr(classifier, key)) or flat[key] == getattr(classifier, key), key


def test_recipes_for_parts(folder, capsys):
    assert prepare.main(["fixtures", "ShapeNetPart", "--out", ".", "--clouds", "32", "--points", "300"]) == 0
    path = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    assert "segmentation" in recipes(path, capsys)
    config = load_recipe(f"recipes/{path}/segmentation.yaml")
    assert (config.model.num_parts, config.model.num_categories) == (50, 16)
    assert load_recipe(f"recipes/{path}/pre-training.yaml").model.encoder_dims == config.model.encoder_dims


def test_one_class_gives_pre_training_alone(folder, capsys):
    fill(folder, ["a"], 6)
    assert "one class only (a)" in recipes(folder, capsys)
    assert sorted(path.name for path in Path("recipes/set").iterdir()) == ["pre-training.yaml", "set-data.yaml"]
    assert load_recipe("recipes/set/pre-training.yaml").dataset.svm is None


def test_folders_that_cannot_be_used(folder, capsys):
    fill(folder, ["a", "b"], 6)
    (folder / "c").mkdir()
    np.save(folder / "c" / "only.npy", np.random.default_rng(0).normal(size=(300, 3)))
    refused(["recipe", "set"], capsys, "c", "1 clouds cannot be split", "TEST_SHARE")
    (folder / "c" / "broken.npy").write_bytes(b"\x93NUMPY")
    refused(["recipe", "set"], capsys, "broken.npy")
    refused(["recipe", "elsewhere"], capsys, "elsewhere", "does not exist")
    refused(["recipe", "set", "--size", "huge"], capsys, "huge", "tiny")
    refused(["recipe", "set", "--method", "point-mai"], capsys, "point-mai", "point-mae")


def test_classes_of_one_split_and_other_point_counts(folder, capsys):
    fill(folder / "train", ["a", "b", "c"], 4)
    fill(folder / "test", ["a", "b"], 2, points=400, first=50)
    assert prepare.main(["check", "set"]) == 2
    said = capsys.readouterr().out
    assert "'c'" in said and "COMMON_CLASSES" in said
    said = recipes(folder, capsys)
    assert "left out" in said and "2 classes" in said
    whole = build_dataset(load_recipe("recipes/set/pre-training.yaml").dataset.train)
    assert len(whole) == 12 and whole.labels is None
    assert build_dataset(load_recipe("recipes/set/fine-tuning.yaml").dataset.train).class_names == ["a", "b"]


def test_a_recipe_of_another_folder(folder, capsys):
    fill(folder, ["a", "b"], 6)
    recipes(folder, capsys)
    fill(folder, ["c"], 6)
    argv = ["--config", "recipes/set/fine-tuning.yaml", "--scratch_model", "--device", "cpu"]
    refused(argv, capsys, "3", command=main.main)
    shutil.rmtree(folder)
    refused([*argv, "--exp_name", "b"], capsys, "set", "does not exist", command=main.main)


def test_all_folds_are_looked_for_first(folder, capsys):
    fill(folder, ["a", "b"], 6)
    recipes(folder, capsys)
    argv = [
        "few-shot",
        "--source",
        "recipes/set/set-data.yaml",
        "--way",
        "2",
        "--shot",
        "2",
        "--out",
        "recipes/set/few-shot-folds",
    ]
    assert prepare.main([*argv, "--folds", "2"]) == 0
    argv = ["--config", "recipes/set/few-shot.yaml", "--finetune_model", "--way", "2", "--shot", "2", "--fold", "all"]
    refused(argv, capsys, "8 of 10 folds are missing", "2, 3", "nothing was trained", command=main.main)
    assert not Path("experiments").exists()


def test_a_set_anywhere_is_checked(folder, capsys):
    fill(folder, ["a", "b"], 5)
    assert prepare.main(["check", "set", "--read"]) == 0
    said = capsys.readouterr().out
    assert "train: 8" in said and "classes: 2" in said and "datasets.prepare recipe set" in said
    refused(["check", "./none"], capsys, "none", "does not exist")
    assert prepare.main(["fixtures", "ShapeNet", "--out", "fx", "--points", "200", "--clouds", "4"]) == 0
    assert "total_bs=4" in capsys.readouterr().out
    assert prepare.main(["check", "ShapeNet", "--data_root", "fx", "--any_count", "--read"]) == 0
    assert prepare.main(["check", "fx/ShapeNet55-34", "--read"]) == 0
    capsys.readouterr()
    assert prepare.main(["check", "ShapeNet", "--data_root", "fx"]) == 2
    assert "clouds of 200 points" in capsys.readouterr().out


def test_probes_on_the_set_of_a_recipe(folder, capsys):
    fill(folder, ["a", "b"], 8)
    recipes(folder, capsys)
    torch.manual_seed(0)
    config = load_recipe("recipes/set/pre-training.yaml")
    torch.save({"base_model": build_model(config.model).state_dict()}, "pth.pth")
    flags = ["--ckpts", "pth.pth", "--device", "cpu", "--exp_name", "x"]
    assert (
        main.main(
            ["--config", "recipes/set/linear-svm.yaml", "--test_svm", "--probe", "knn", "--probe", "logistic", *flags]
        )
        == 0
    )
    (written,) = Path("experiments").rglob("result.json")
    results = json.loads(written.read_text())["results"]
    assert any("knn" in name for name in results) and any("linear SVM on Folder" in name for name in results)
    rows = [line.split("\t") for line in (written.parent / "predictions.txt").read_text().splitlines()[1:]]
    assert len(rows) == 4 and all(len(row) == 3 and row[1].isdigit() for row in rows)
    argv = ["--config", "recipes/set/linear-svm.yaml", "--test_svm", "modelnet40", *flags]
    refused(argv, capsys, "Folder", "--test_svm own", "cfgs/linear-svm/point-m2ae/modelnet40.yaml", command=main.main)


def test_more_outputs_than_classes_are_told(folder, capsys):
    fill(folder, ["a", "b"], 8)
    recipes(folder, capsys, "--epochs", "1")
    argv = [
        "--config",
        "recipes/set/fine-tuning.yaml",
        "--scratch_model",
        "--device",
        "cpu",
        "--set",
        "model.cls_dim=5",
    ]
    assert main.main(argv) == 0
    captured = capsys.readouterr()
    assert "model.cls_dim: 5 outputs for the 2 classes" in captured.out + captured.err


def test_clouds_with_too_few_points_are_passed_over(folder, capsys):
    fill(folder, ["a"], 2)
    np.save(folder / "a" / "tiny.npy", np.random.default_rng(0).normal(size=(5, 3)))
    config = load_recipe("cfgs/debug/point-mae.yaml")
    torch.save({"base_model": build_model(config.model).state_dict()}, "pth.pth")
    argv = ["--config", "cfgs/debug/point-mae.yaml", "--ckpts", "pth.pth", "--device", "cpu", "--input"]
    assert main_vis.main([*argv, "set"]) == 0
    captured = capsys.readouterr()
    assert "tiny.npy" in captured.out + captured.err and "2 clouds of set" in captured.out + captured.err
    refused([*argv, "set/a/tiny.npy"], capsys, "tiny.npy", "5 points", command=main_vis.main)


def test_fixtures_fit_each_other(folder, capsys):
    for name in ("ModelNet", "ModelNet40-C"):
        assert prepare.main(["fixtures", name, "--out", "fx", "--points", "64"]) == 0
    said = capsys.readouterr().out
    assert "--scratch_model" in said and "--corruptions fx/modelnet40_c" in said and "total_bs" not in said
    keys = {
        "NAME": "ModelNet",
        "DATA_PATH": "fx/ModelNet/modelnet40_normal_resampled",
        "N_POINTS": 64,
        "subset": "test",
    }
    corrupted = {"NAME": "ModelNet40_C", "DATA_PATH": "fx/modelnet40_c", "corruption": "uniform", "severity": 1}
    assert build_dataset(keys).class_names == build_dataset(corrupted).class_names


def test_workers_of_a_conversion_import_no_torch():
    code = "import sys, datasets.preparing.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
