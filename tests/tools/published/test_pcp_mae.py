"""PCP-MAE's own files of fine-tuning."""


import pytest
import yaml

from tools.launch import load_recipe
from tools.published.pcp_mae import settings
from utils import ROOT
from utils.errors import UserError

MODEL = {
    "NAME": "PointTransformer",
    "trans_dim": 384,
    "depth": 12,
    "drop_path_rate": 0.2,
    "cls_dim": 40,
    "num_heads": 6,
    "group_size": 32,
}
MODEL |= {"num_group": 64, "encoder_dims": 384}


def written(folder, data="ModelNet40", **keys):
    """Write a file as the published ones are."""
    sets = {
        part: {"_base_": f"cfgs/dataset_configs/{data}.yaml", "others": {"subset": part}}
        for part in ("train", "val", "test")
    }
    optimizer = {"type": "AdamW", "kwargs": {"lr": 1e-5, "weight_decay": 0.05}}
    scheduler = {"type": "CosLR", "kwargs": {"epochs": 300, "initial_epochs": 10}}
    tree = {
        "optimizer": optimizer,
        "scheduler": scheduler,
        "dataset": sets,
        "model": {**MODEL, **keys},
        "npoints": 1024,
    }
    file = folder / "finetune.yaml"
    file.write_text(yaml.safe_dump({**tree, "total_bs": 32, "max_epoch": 300, "grad_norm_clip": 10}))
    return file


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("full", ("mlp3", "full", "evaluation")),
        ("mlp3", ("mlp3", "mlp3", "training")),
        ("linear", ("linear", "linear", "training")),
    ],
)
def test_type_says_what_trains(kind, expected, tmp_path):
    file = written(tmp_path, type=kind)
    config = load_recipe(file, overrides=settings(file, "pcp-mae"))
    assert (config.model.NAME, config.optimizer.head_scale) == ("PCP_MAE_Classifier", 10)
    assert (config.model.head, config.transfer, config.frozen_mode) == expected
    assert config.augmentation == "scale_translate"


@pytest.mark.parametrize("data", ["ScanObjectNN_hardest", "ModelNetFewShot"])
def test_all_but_modelnet40_turn(data, tmp_path):
    file = written(tmp_path, data)
    assert "augmentation=rotate" in settings(file, "pcp-mae")


def test_what_is_left_alone(tmp_path):
    """Files of Point-MAE, recipes of ours, and other models; an unknown type is refused."""
    file = written(tmp_path, type="full")
    assert settings(file, "point-mae") == settings(file, None) == []
    assert settings(ROOT / "cfgs/fine-tuning/point-mae/modelnet40.yaml", "pcp-mae") == []
    assert settings(written(tmp_path, NAME="Point_M2AE_ModelNet40"), "pcp-mae") == []
    with pytest.raises(UserError, match=r"model\.type: is 'half'; choose one of full, mlp3, linear"):
        settings(written(tmp_path, type="half"), "pcp-mae")
