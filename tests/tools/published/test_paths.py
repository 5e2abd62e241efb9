"""Every published configuration path, and the folder of a run."""

import shutil
from pathlib import Path

import pytest
import torch

from tools.launch import methods, open_run
from tools.published import paths
from tools.published.paths import find_recipe, lookup, published_paths
from tools.run_folder import experiment_folder
from utils import ROOT
from utils.config.cli import parse_args
from utils.errors import UserError

SINGLE = ["pretrain", "finetune_modelnet", "finetune_modelnet_8k", "finetune_scan_hardest", "finetune_scan_objbg"]
SINGLE += ["finetune_scan_objonly", "fewshot"]
MULTI = ["linear-svm/modelnet40", "linear-svm/scan_obj-bg", "fine-tuning/modelnet40", "fine-tuning/scan_pb"]
MULTI += ["fine-tuning/scan_obj", "fine-tuning/scan_obj-bg", "fewshot"]
# What each published path resolves to, without a checkpoint or --method.
EXPECTED = {
    "cfgs/pre-training/point-m2ae.yaml": "cfgs/pre-training/point-m2ae.yaml",
    "cfgs/pre-training/i2p-mae.yaml": "cfgs/pre-training/i2p-mae.yaml",
    "cfgs/linear-svm/modelnet40.yaml": "cfgs/linear-svm/point-m2ae/modelnet40.yaml",
    "cfgs/linear-svm/scan_obj-bg.yaml": "cfgs/linear-svm/point-m2ae/scan_obj-bg.yaml",
    "cfgs/fine-tuning/modelnet40.yaml": "cfgs/fine-tuning/point-m2ae/modelnet40.yaml",
    "cfgs/fine-tuning/scan_pb.yaml": "cfgs/fine-tuning/point-m2ae/scan_pb.yaml",
    "cfgs/fine-tuning/scan_obj.yaml": "cfgs/fine-tuning/point-m2ae/scan_obj.yaml",
    "cfgs/fine-tuning/scan_obj-bg.yaml": "cfgs/fine-tuning/point-m2ae/scan_obj-bg.yaml",
    "cfgs/fewshot.yaml": "cfgs/few-shot/point-m2ae/modelnet40.yaml",
    "cfgs/pretrain.yaml": "cfgs/pre-training/inter-mae.yaml",
    "cfgs/finetune_modelnet.yaml": "cfgs/fine-tuning/point-m2ae/modelnet40.yaml",
    "cfgs/finetune_modelnet_8k.yaml": "cfgs/fine-tuning/point-mae/modelnet40_8k.yaml",
    "cfgs/finetune_scan_hardest.yaml": "cfgs/fine-tuning/point-m2ae/scan_pb.yaml",
    "cfgs/finetune_scan_objbg.yaml": "cfgs/fine-tuning/point-m2ae/scan_obj-bg.yaml",
    "cfgs/finetune_scan_objonly.yaml": "cfgs/fine-tuning/point-m2ae/scan_obj.yaml",
    "cfgs/pretrain/base.yaml": "cfgs/pre-training/pcp-mae.yaml",
    "cfgs/linear/finetune_modelnet.yaml": "cfgs/fine-tuning/pcp-mae/modelnet40-linear.yaml",
    "cfgs/linear/finetune_modelnet_8k.yaml": "cfgs/fine-tuning/pcp-mae/modelnet40_8k-linear.yaml",
    "cfgs/linear/finetune_scan_hardest.yaml": "cfgs/fine-tuning/pcp-mae/scan_pb-linear.yaml",
    "cfgs/linear/finetune_scan_objbg.yaml": "cfgs/fine-tuning/pcp-mae/scan_obj-bg-linear.yaml",
    "cfgs/linear/finetune_scan_objonly.yaml": "cfgs/fine-tuning/pcp-mae/scan_obj-linear.yaml",
    "cfgs/linear/fewshot.yaml": "cfgs/few-shot/pcp-mae/modelnet40-linear.yaml",
    "cfgs/mlp3/finetune_modelnet.yaml": "cfgs/fine-tuning/pcp-mae/modelnet40-mlp3.yaml",
    "cfgs/mlp3/finetune_modelnet_8k.yaml": "cfgs/fine-tuning/pcp-mae/modelnet40_8k-mlp3.yaml",
    "cfgs/mlp3/finetune_scan_hardest.yaml": "cfgs/fine-tuning/pcp-mae/scan_pb-mlp3.yaml",
    "cfgs/mlp3/finetune_scan_objbg.yaml": "cfgs/fine-tuning/pcp-mae/scan_obj-bg-mlp3.yaml",
    "cfgs/mlp3/finetune_scan_objonly.yaml": "cfgs/fine-tuning/pcp-mae/scan_obj-mlp3.yaml",
    "cfgs/mlp3/fewshot.yaml": "cfgs/few-shot/pcp-mae/modelnet40-mlp3.yaml",
    "Point-MAE_SA3D/cfgs/config.yaml": "cfgs/pre-training/gm3d.yaml",
    "Point-MAE_SA3D/cfgs/finetune_modelnet.yaml": "cfgs/fine-tuning/gm3d/modelnet40.yaml",
    "Point-MAE_SA3D/cfgs/config_finetune_scan_hardest.yaml": "cfgs/fine-tuning/gm3d/scan_pb.yaml",
    "Point-MAE_SA3D/cfgs/config_finetune_scan_objonly.yaml": "cfgs/fine-tuning/gm3d/scan_obj.yaml",
    "Point-MAE_SA3D/cfgs/config_finetune_scan_objbg.yaml": "cfgs/fine-tuning/gm3d/scan_obj-bg.yaml",
    "Point-MAE_SA3D/cfgs/fewshot.yaml": "cfgs/few-shot/gm3d/modelnet40.yaml",
    "Point-M2AE_SA3D/cfgs/config_Point_M2AE.yaml": "cfgs/pre-training/gm3d-point-m2ae.yaml",
    "Point-M2AE_SA3D/cfgs/finetune_modelnet_PointM2AE.yaml": "cfgs/fine-tuning/gm3d-point-m2ae/modelnet40.yaml",
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_hardest_PointM2AE.yaml": "cfgs/fine-tuning/gm3d-point-m2ae/scan_pb.yaml",
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_objonly_PointM2AE.yaml": "cfgs/fine-tuning/gm3d-point-m2ae/scan_obj.yaml",
    "Point-M2AE_SA3D/cfgs/config_finetune_scan_objbg_PointM2AE.yaml": "cfgs/fine-tuning/gm3d-point-m2ae/scan_obj-bg.yaml",
    "Point-M2AE_SA3D/cfgs/fewshot-Point-M2AE.yaml": "cfgs/few-shot/gm3d-point-m2ae/modelnet40.yaml",
}


@pytest.mark.parametrize("path", EXPECTED)
@pytest.mark.parametrize("prefix", ["", "./", "/"])
def test_published_path(path, prefix):
    assert lookup(prefix + path).path.as_posix() == EXPECTED[path]


def test_the_table_is_complete():
    assert {f"cfgs/{name}.yaml" for name in SINGLE + MULTI} <= set(published_paths())
    assert set(EXPECTED) <= set(published_paths())


@pytest.mark.parametrize("path", published_paths())
@pytest.mark.parametrize("method", [None, *methods()])
def test_every_published_path_is_found_or_said_to_be_missing(path, method):
    expected = lookup(path, method)
    if (ROOT / expected.path).is_file():
        recipe = find_recipe(path, method)
        assert recipe.path == ROOT / expected.path or recipe.path == Path(path)
        assert recipe.method == expected.method and recipe.task == expected.task
    else:
        with pytest.raises(
            UserError, match=f"resolves to {expected.path.as_posix()}, which this version does not have yet"
        ):
            find_recipe(path, method)


def test_checkpoint_or_method_decides():
    assert lookup("cfgs/pretrain.yaml", "point-mae").path == Path("cfgs/pre-training/point-mae.yaml")
    assert lookup("cfgs/finetune_modelnet.yaml", "inter-mae").path == Path("cfgs/fine-tuning/inter-mae/modelnet40.yaml")
    # Where the path names the method, nothing else does.
    assert lookup("cfgs/pre-training/i2p-mae.yaml", "point-mae").method == "i2p-mae"
    assert lookup("Point-MAE_SA3D/cfgs/finetune_modelnet.yaml", "point-mae").method == "gm3d"
    with pytest.raises(UserError, match="--method point-m2e: is unknown; did you mean point-m2ae"):
        open_run(parse_args(["--config", "cfgs/pretrain.yaml", "--method", "point-m2e"]), torch.device("cpu"))


def test_names_that_geomask3d_does_not_have():
    assert not any(lookup(f"Point-MAE_SA3D/cfgs/{name}.yaml") for name in ("pretrain", "finetune_scan_hardest"))


def test_recipes_not_there_yet(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "cfgs" / "debug", tmp_path / "cfgs" / "debug")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    message = (
        r"cfgs/pretrain.yaml: resolves to cfgs/pre-training/inter-mae.yaml, .* not have yet; available for .*: none"
    )
    with pytest.raises(UserError, match=message):
        find_recipe("cfgs/pretrain.yaml")


def test_place_of_a_recipe_says_method_task_and_data_set():
    recipe = find_recipe("cfgs/linear-svm/point-m2ae/modelnet10.yaml")
    assert (recipe.method, recipe.task, recipe.dataset) == ("point-m2ae", "linear-svm", "modelnet10")
    recipe = find_recipe(ROOT / "cfgs/pre-training/point-m2ae.yaml", "point-mae")
    assert (recipe.method, recipe.task, recipe.dataset) == ("point-m2ae", "pre-training", None)


@pytest.mark.parametrize(
    ("recipe", "flags", "folder"),
    [
        ("cfgs/pre-training/point-m2ae.yaml", ["--exp_name", "a"], "pre-training/point-m2ae/a"),
        ("cfgs/linear-svm/point-m2ae/modelnet40.yaml", [], "linear-svm/point-m2ae/modelnet40/default"),
        ("cfgs/debug/point-m2ae.yaml", ["--exp_name", "b", "--mode", "easy"], "debug/point-m2ae/b_easy"),
        ("cfgs/debug/point-m2ae.yaml", ["--exp_name", "t", "--test", "--ckpts", "x.pth"], "debug/point-m2ae/t"),
        ("elsewhere/mine/small.yaml", ["--exp_name", "a/b"], "mine/small/a/b"),
        ("elsewhere/cfgs/x.yaml", [], "cfgs/x/default"),
    ],
)
def test_experiment_folder(recipe, flags, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_args(["--config", recipe, *flags])
    assert experiment_folder(args, recipe) == Path("experiments") / folder
    assert experiment_folder(args, Path(recipe).resolve()) == Path("experiments") / folder
