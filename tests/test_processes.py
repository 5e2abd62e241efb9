"""Several processes compute what one would, with drop path: it is drawn for the global batch like everything else."""

import json
from pathlib import Path

import pytest
import torch

import main
from models import build_model
from tests.commands import rows, run_in_processes
from tools.doctor import methods
from tools.launch import load_recipe
from tools.optim import build_optimizer
from utils.files import read_checkpoint

ROOT = Path(__file__).parent.parent
STEPS, THAW_STEPS, SIZE = 15, 4, 12  # a batch that two and three processes can share
# Rounding stays rounding at a small rate, the recipes' own one in their first epoch, and where Adam makes no whole steps of gradients that
# are nearly zero. At a rate of 1e-3 with Adam's usual eps, losses of two processes and of one differ by 4e-8 at the first step and, of
# Point-M2AE, by 2e-4 at the fifteenth; of GM3D within 6e-7 throughout. Here those of GM3D differ by 1e-7.
QUIET = ["optimizer.kwargs.lr=1e-6", "optimizer.kwargs.eps=1e-2"]


def arguments(method, name, *flags):
    settings = [
        f"total_bs={SIZE}",
        f"dataset.train.clouds={SIZE * STEPS}",
        "max_epoch=0",
        "log_every=1",
        "dataset.svm=null",
        *QUIET,
    ]
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = str(ROOT / "cfgs" / "debug" / f"{method}.yaml")
    return ["--config", recipe, "--exp_name", name, "--device", "cpu", *flags, *sets]


def losses(method, name):
    lines = Path(f"experiments/debug/{method}/{name}/metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("method", methods())
def test_processes_with_drop_path_equal_one(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments(method, "one")) == 0
    assert len(losses(method, "one")) == STEPS
    for count in (2, 3):
        run_in_processes(arguments(method, str(count), "--sync_bn"), count)
        assert losses(method, str(count)) == pytest.approx(losses(method, "one"), rel=1e-5)


def updates(folder):
    """Return how often the optimizer has moved each parameter of a run."""
    config = load_recipe(str(folder / "config.yaml"))
    model = build_model(config.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config.optimizer).param_groups
    order = [names[id(parameter)] for group in groups for parameter in group["params"]]
    state = read_checkpoint(folder / "ckpt-last.pth")["optimizer"]["state"]
    return {order[place]: int(entry["step"]) for place, entry in state.items()}


def thawing(name, *flags, stepwise):
    """Return the command line of a fine-tuning whose transformer is frozen in its first epoch."""
    settings = [
        f"total_bs={SIZE}", f"dataset.train.clouds={SIZE * THAW_STEPS}", "dataset.val.clouds=20", "max_epoch=3",
        "max_epoch_inclusive=false", "log_every=1", "scheduler.type=function", "optimizer.kwargs.lr=1e-4", "optimizer.kwargs.eps=1e-2",
        "model.encoder_unfreeze_epoch=1", f"model.encoder_unfreeze_stepwise={stepwise}",
        "model.encoder_unfreeze_stepwise_num_layers=1",
    ]  # fmt: skip
    sets = [part for setting in settings for part in ("--set", setting)]
    recipe = str(ROOT / "cfgs" / "fine-tuning" / "point-jepa" / "debug.yaml")
    return ["--config", recipe, "--exp_name", name, "--device", "cpu", "--scratch_model", *flags, *sets]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stepwise", [False, True], ids=["at once", "block by block"])
def test_thawing_on_two_processes_equals_one(tmp_path, monkeypatch, stepwise):
    """Blocks that begin to train in mid-run do so on every process, from gradients of the whole batch."""
    monkeypatch.chdir(tmp_path)
    assert main.main(thawing("one", stepwise=stepwise)) == 0
    run_in_processes(thawing("two", "--sync_bn", stepwise=stepwise))
    folder = Path("experiments/fine-tuning/point-jepa/debug")
    one, two = (rows(folder / name, "step") for name in ("one", "two"))
    assert [row["epoch"] for row in one] == [epoch for epoch in range(3) for _ in range(THAW_STEPS)]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    for name in ("one", "two"):
        done = updates(folder / name)
        assert done["cls_head.0.weight"] == 3 * THAW_STEPS
        blocks = [done[f"encoder.blocks.{block}.attn.qkv.weight"] // THAW_STEPS for block in range(2)]
        assert blocks == ([1, 2] if stepwise else [2, 2])  # the last block thaws first
    ends = [read_checkpoint(folder / name / "ckpt-last.pth")["base_model"] for name in ("one", "two")]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6, msg=name)
