"""The published command of part segmentation: its flags, from inside its folder, on the published layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import prepare
from tools.launch import load_recipe
from tools.optim import build_schedule
from tools.published.segmentation import translate
from utils.config.cli import parse_args
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
PUBLISHED = ["--ckpts", "pre.pth", "--root", "parts", "--learning_rate", "0.0002", "--epoch", "300"]


def resolved(argv, method=None):
    args = parse_args(translate(argv))
    return args, load_recipe(args.config, overrides=args.set, method=args.method or method)


def test_published_flags():
    args, config = resolved(PUBLISHED)
    assert args.ckpts == "pre.pth" and args.finetune_model and not args.test
    assert [entry.ROOT for entry in (config.dataset.train, config.dataset.val, config.dataset.test)] == ["parts"] * 3
    assert config.model.NAME == "Point_M2AE_SEG"
    flags = [
        "--model",
        "pt",
        "--batch_size",
        "8",
        "--epoch",
        "20",
        "--warmup_epoch",
        "2",
        "--log_dir",
        "./exp",
        "--npoint",
        "1024",
    ]
    args, config = resolved([*flags, "--normal", "--gpu", "0", "--root", "/data/parts"])
    assert config.model.NAME == "Point_MAE_SEG" and args.exp_name == "./exp"
    assert (config.total_bs, config.max_epoch, config.scheduler.kwargs.epochs) == (8, 20, 20)
    assert config.scheduler.kwargs.initial_epochs == 2 and config.dataset.test.npoints == 1024
    assert config.dataset.train.ROOT == "/data/parts"


def test_flags_of_the_main_program_pass():
    args, _ = resolved(["--test", "--ckpts", "a.pth", "--vote", "--seed", "3", "--set", "total_bs=4"])
    assert args.test and args.vote and args.seed == 3 and not args.finetune_model
    with pytest.raises(UserError, match="--model dgcnn: is unknown; choose one of Point_M2AE_SEG, pt"):
        translate(["--model", "dgcnn"])


@pytest.mark.parametrize("method", ["point-m2ae", "point-mae"])
def test_protocol_number_for_number(method):
    """The published protocol, and the learning rate of each of its 300 epochs."""
    import numpy as np

    _, config = resolved([], method)
    assert (config.optimizer.type, config.optimizer.kwargs.lr, config.optimizer.kwargs.weight_decay) == (
        "AdamW",
        2e-4,
        0.05,
    )
    assert config.optimizer.token_rule and config.legacy_names() == frozenset()
    assert (config.total_bs, config.grad_norm_clip, config.step_per_update) == (16, 10, 1)
    assert config.max_epoch == 300 and not config.max_epoch_inclusive  # epochs 0 to 299
    assert config.augmentation == "uniform_scale_translate"
    train, test = config.dataset.train, config.dataset.test
    assert (train.subset, train.npoints, train.sampling) == ("trainval", 2048, "replacement")
    assert (test.subset, test.npoints, test.sampling) == ("test", 2048, "replacement")
    rate = build_schedule(config.scheduler, config.optimizer.kwargs.lr)
    with np.load(ROOT / "tests" / "parity" / "data" / "point-mae" / "primitives.npz") as ref:
        published = ref["lr_partseg"][0]
    np.testing.assert_allclose([rate(epoch, 0.5) for epoch in range(300)], published, rtol=1e-6)
    with np.load(ROOT / "tests" / "parity" / "data" / "point-m2ae" / "schedules.npz") as ref:
        np.testing.assert_allclose(
            [rate(epoch, 0.5) for epoch in range(300)], ref["partseg_lr_used_in_epoch"], rtol=1e-6
        )


def test_from_inside_its_folder(tmp_path):
    """`cd segmentation && python main.py` trains on a set in the published layout, and says what is wrong with status 2."""
    data = tmp_path / "data"
    assert prepare.main(["fixtures", "ShapeNetPart", "--out", str(data), "--clouds", "16", "--points", "200"]) == 0
    root = next(data.iterdir())
    small = ["num_group=8", "group_size=8", "trans_dim=24", "encoder_dims=24", "embed_widths=[8, 16, 32]", "depth=2"]
    small += ["num_heads=2", "taps=[0, 1]", "prop_widths=[16, 16]", "head_widths=[16, 16]"]
    sets = [part for text in small for part in ("--set", f"model.{text}")]
    flags = [
        "--model",
        "pt",
        "--root",
        str(root),
        "--npoint",
        "64",
        "--epoch",
        "1",
        "--batch_size",
        "8",
        "--log_dir",
        "try",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = ROOT / "segmentation"

    def command(*extra):
        argv = [sys.executable, str(folder / "main.py"), *flags, "--device", "cpu", *sets, *extra]
        return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = command()
    assert done.returncode == 0, done.stderr
    run = tmp_path / "experiments" / "segmentation" / "point-mae" / "shapenet_part" / "try"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["kind"] == "parts"] == [0]
    assert (run / "ckpt-best.pth").exists()
    broken = next((root / "02691156").glob("*.txt"))
    broken.write_text(broken.read_text() + "1 2 nan 0 0 1 1\n")
    failed = command("--overwrite")
    assert failed.returncode == 2 and f"{broken}: line 201" in failed.stderr and "Traceback" not in failed.stderr
