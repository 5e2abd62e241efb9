"""A method from a file outside the package pre-trains, fine-tunes and segments; no table knows it."""

from pathlib import Path

import pytest
import yaml

import main
from models import MODELS
from tests.commands import rows
from tools.launch import methods
from utils.files import read_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parent.parent
FILE = Path(__file__).parent / "fixtures" / "toy_method.py"
ENCODER = {"trans_dim": 24, "encoder_dims": 24, "depth": 2, "num_heads": 2, "embed_widths": [8, 16, 32]}
PATCHES = {"num_group": 16, "group_size": 16}
MODELS_OF = {
    "debug/point-mae": {"NAME": "Toy", **PATCHES, "transformer_config": {**ENCODER, "decoder_depth": 1, "decoder_num_heads": 2}},
    "fine-tuning/point-mae/debug": {"NAME": "ToyClassifier", **PATCHES, **ENCODER, "cls_dim": 20},
    "segmentation/point-mae/debug": {
        "NAME": "ToySegmenter", **PATCHES, **ENCODER, "taps": [0, 1], "num_parts": 89, "num_categories": 20,
        "label_width": 8, "prop_widths": [16, 16], "head_widths": [16, 16],
    },
}  # fmt: skip
SETTINGS = ["max_epoch=1", "max_epoch_inclusive=false", "total_bs=10", "dataset.train.clouds=20", "log_every=1"]


@pytest.fixture
def own_names(monkeypatch):
    """Take the names that the file registers away again."""
    for table in ("_entries", "_canonical"):
        monkeypatch.setattr(MODELS, table, dict(getattr(MODELS, table)))


def run(name, base, *flags, imports="key", settings=()):
    """Run a recipe of the method, `imports` by a key of the recipe or by the flag; returns the folder of the run."""
    recipe = {"_base_": str(ROOT / "cfgs" / f"{base}.yaml"), "model": MODELS_OF[base]}
    if imports == "key":
        recipe["imports"] = [str(FILE)]
    else:
        flags = ("--import", str(FILE), *flags)
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    sets = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    assert main.main(["--config", f"{name}.yaml", "--exp_name", "a", "--device", "cpu", *flags, *sets]) == 0
    return next(Path("experiments").rglob(f"{name}/a"))


def test_one_file_is_a_method(tmp_path, monkeypatch, own_names, capsys):
    monkeypatch.chdir(tmp_path)
    probe = ["dataset.svm.train.clouds=40", "dataset.svm.test.clouds=20", "svm.cross_validate=false"]
    folder = run("toy", "debug/point-mae", imports="flag", settings=probe)
    (epoch,) = rows(folder, "epoch")
    assert "toy" in methods() and 0 < epoch["loss_spread"] < epoch["loss"]
    assert rows(folder, "svm")[-1]["accuracy"] > 0 and (folder / "report.html").exists()
    assert read_checkpoint(folder / "ckpt-last.pth")["config"]["imports"] == [FILE.relative_to(ROOT).as_posix()]

    start = ("--finetune_model", "--ckpts", str(folder / "ckpt-last.pth"))
    held_out = ["dataset.val.clouds=20"]
    classified = run("toy-classify", "fine-tuning/point-mae/debug", *start, settings=held_out)
    assert "missing (cls_head_finetune, cls_pos, cls_token)" in capsys.readouterr().err
    assert len(rows(classified, "val")) == 1
    few = [*held_out, "dataset.val.N_POINTS=256", "dataset.train.N_POINTS=256"]
    segmented = run("toy-segment", "segmentation/point-mae/debug", *start, settings=few)
    assert rows(segmented, "parts")[0]["instance_miou"] > 0
