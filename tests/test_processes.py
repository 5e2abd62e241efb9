"""Several processes compute what one would, with drop path: it is drawn for the global batch like everything else."""

import json
from pathlib import Path

import pytest

import main
from tests.commands import run_in_processes
from tools.doctor import methods

ROOT = Path(__file__).parent.parent
STEPS, SIZE = 15, 12  # a batch that two and three processes can share
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
