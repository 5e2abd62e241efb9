"""Commands one after the other, each from the checkpoint that one before left, with the published paths of README.

The pre-training is the smallest one, so that every recipe is made for another size of model than the checkpoint has.
"""

import contextlib
import json
from pathlib import Path

import pytest

import main
import main_vis
from datasets.preparing.fixtures import Size, write_fixture
from datasets.preparing.layouts import find
from tools import export
from utils.config.yaml import read_yaml
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

# Fixture -> clouds and points of each.
SETS = {
    "ModelNet40_SVM": (30, 1024),
    "ModelNet": (20, 1024),
    "ModelNetFewShot": (20, 0),
    "ShapeNetPart": (4, 512),
    "ShapeNet": (8, 2048),
}
SHORT = ["max_epoch=0", "max_epoch_inclusive=true", "total_bs=8", "log_every=1", "optimizer.kwargs.lr=1e-4"]
SMALL = ["npoints=256", *(f"dataset.{name}.N_POINTS=1024" for name in ("train", "val", "test"))]  # as the fixture has
METHODS = [
    "point-m2ae",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("point-mae", "i2p-mae", "inter-mae", "pcp-mae", "gm3d", "gm3d-point-m2ae")
    ),
]


def run(*flags, sets=(), program=main):
    settings = [part for text in sets for part in ("--set", text)]
    assert program.main([*flags, "--device", "cpu", "--data_root", "sets", *settings]) == 0


@pytest.fixture(scope="module", params=METHODS)
def pretrained(request, tmp_path_factory):
    """Return a folder with a run of the smallest pre-training of a method, fixtures, and the path of its checkpoint."""
    folder = tmp_path_factory.mktemp("chain")
    with contextlib.chdir(folder):
        for name, size in SETS.items():
            write_fixture(find(name)[0], Path("sets"), Size(*size))
        sets = ["dataset.train.clouds=32", "max_epoch=0", "dataset.svm.train.clouds=30", "dataset.svm.test.clouds=20"]
        run(
            "--config",
            f"cfgs/debug/{request.param}.yaml",
            "--exp_name",
            "try",
            sets=[*sets, "svm.cross_validate=false"],
        )
    return folder, f"experiments/debug/{request.param}/try/ckpt-last.pth", request.param


@pytest.fixture
def checkpoint(pretrained, monkeypatch):
    folder, path, _ = pretrained
    monkeypatch.chdir(folder)
    return path


@pytest.fixture
def tensors(checkpoint):
    """Return the path of the same checkpoint as a safetensors file."""
    path = Path(checkpoint).with_suffix(".safetensors")
    assert path.exists() or export.main(["--ckpts", checkpoint, "--out", str(path)]) == 0
    return str(path)


def encoder(path):
    """Return the keys of the encoder in a configuration, by name."""
    model = read_yaml(path)["model"]
    keys = {**model, **model.get("transformer_config", {})}
    wanted = (
        "encoder_dims",
        "encoder_depths",
        "trans_dim",
        "depth",
        "num_heads",
        "embed_widths",
        "num_groups",
        "num_group",
    )
    return {key: keys[key] for key in wanted if key in keys}


def result(checkpoint, what):
    [folder] = Path(checkpoint).parent.glob(f"{what}_2*")
    return json.loads((folder / "result.json").read_text())


def test_linear_svm(checkpoint, capsys):
    run("--config", "cfgs/linear-svm/modelnet40.yaml", "--test_svm", "modelnet40", "--ckpts", checkpoint)
    log = capsys.readouterr().err
    assert f"{checkpoint}: its own configuration says " in log and "; --set model.KEY=VALUE changes that" in log
    first = next(line for line in log.splitlines() if " evaluating " in line)
    assert "M parameters, on modelnet40, cpu, in experiments/debug/" in first
    found = result(checkpoint, "svm_modelnet40")
    assert found["checkpoint"] == checkpoint and any(name.startswith("linear SVM") for name in found["results"])
    assert f"result: {Path(checkpoint).parent}/svm_modelnet40_" in log.splitlines()[-1]


def test_linear_svm_on_another_set_leads_on(checkpoint, pretrained, capsys):
    argv = ["--config", "cfgs/linear-svm/modelnet40.yaml", "--test_svm", "synthetic", "--ckpts", checkpoint]
    assert main.main([*argv, "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    command = f"python main.py --config cfgs/linear-svm/{pretrained[2]}/synthetic.yaml --test_svm synthetic --ckpts {checkpoint}"
    assert f"the recipe evaluates on ModelNet40_SVM; run {command}" in said
    flags = command.split()[2:]
    run(*flags, sets=["dataset.svm.train.clouds=30", "dataset.svm.test.clouds=20", "svm.cross_validate=false"])


def test_fine_tuning_and_evaluation(checkpoint, capsys):
    run(
        "--config",
        "cfgs/fine-tuning/modelnet40.yaml",
        "--finetune_model",
        "--ckpts",
        checkpoint,
        sets=[*SHORT, *SMALL],
    )
    [folder] = Path("experiments/fine-tuning").glob("*/modelnet40/default")
    assert encoder(folder / "config.yaml") == encoder(Path(checkpoint).parent / "config.yaml")
    assert read_yaml(folder / "config.yaml")["model"]["cls_dim"] == 40
    # The classifier of 40 classes, and the encoder in it, is what --test builds, though this recipe has 15 and other groups.
    tuned = f"{folder}/ckpt-last.pth"
    run("--config", "cfgs/fine-tuning/modelnet40.yaml", "--test", "--ckpts", tuned, sets=["total_bs=8", *SMALL])
    assert set(result(tuned, "test")["results"]) == {"accuracy"}
    assert (folder / "result.json").exists()


def test_few_shot(tensors):
    flags = ["--finetune_model", "--exp_name", "fs", "--ckpts", tensors, "--way", "5", "--shot", "10", "--fold", "0"]
    run("--config", "cfgs/fewshot.yaml", *flags, sets=SHORT)


def test_segmentation(tensors):
    sets = [*SHORT, *(f"dataset.{name}.npoints=256" for name in ("train", "val", "test")), "total_bs=4"]
    run("--config", "cfgs/segmentation/shapenet_part.yaml", "--finetune_model", "--ckpts", tensors,
        sets=[*sets, "model.prop_widths=[64, 32]", "model.head_widths=[32, 16]"])  # fmt: skip
    [folder] = Path("experiments/segmentation").glob("*/shapenet_part/default")
    tuned = f"{folder}/ckpt-last.pth"
    run("--config", "cfgs/segmentation/shapenet_part.yaml", "--test", "--ckpts", tuned, sets=sets[4:])
    assert "instance mIoU" in result(tuned, "test")["results"]


def test_pictures(tensors, pretrained):
    recipe = f"cfgs/pre-training/{pretrained[2]}.yaml"
    sets = ["dataset.val=null", "dataset.train.NAME=ShapeNet", "dataset.train.N_POINTS=2048"]
    run("--test", "--ckpts", tensors, "--config", recipe, "--count", "2", program=main_vis, sets=sets)
    assert list(Path(tensors).parent.glob("vis_2*/report.html"))


def test_flags_stand_over_the_checkpoint(checkpoint, capsys):
    argv = ["--config", "cfgs/linear-svm/modelnet40.yaml", "--test_svm", "modelnet40", "--ckpts", checkpoint]
    name = "num_groups" if "m2ae" in checkpoint or "i2p" in checkpoint else "num_group"
    value = [40, 20, 10] if name == "num_groups" else 20
    run(*argv, "--exp_name", "other", sets=[f"model.{name}={value}", "svm.cross_validate=false"])
    assert f"--set stands over its own configuration for {name}" in capsys.readouterr().err


def test_published_checkpoints_take_the_recipe(checkpoint, tmp_path, capsys):
    """Without a configuration in it, the recipe says what is built."""
    import torch

    torch.save({"base_model": read_checkpoint(checkpoint)["base_model"]}, tmp_path / "published.pth")
    argv = [
        "--config",
        "cfgs/linear-svm/modelnet40.yaml",
        "--test_svm",
        "modelnet40",
        "--ckpts",
        str(tmp_path / "published.pth"),
    ]
    assert main.main([*argv, "--device", "cpu", "--data_root", "sets"]) == 2
    assert "another shape" in capsys.readouterr().err


def test_resume_with_another_configuration(checkpoint, pretrained, capsys):
    base = ["--config", f"cfgs/debug/{pretrained[2]}.yaml", "--exp_name", "try", "--resume"]
    sets = [
        "dataset.train.clouds=32",
        "dataset.svm.train.clouds=30",
        "dataset.svm.test.clouds=20",
        "svm.cross_validate=false",
    ]
    argv = [*base, "--device", "cpu", *(part for text in sets for part in ("--set", text))]
    assert main.main([*argv, "--set", "max_epoch=1", "--set", "optimizer.kwargs.lr=0.5"]) == 2
    assert "optimizer.kwargs.lr 0.001, now 0.5. Resume with the recipe" in capsys.readouterr().err
    run(*base, sets=[*sets, "max_epoch=1"])
    assert "resumed with another configuration: max_epoch 0, now 1" in capsys.readouterr().err
    lines = (Path(checkpoint).parent / "provenance.yaml").read_text().splitlines()
    assert lines[0].startswith("Command: ") and sum(line.startswith("Resumed ") for line in lines) == 1
