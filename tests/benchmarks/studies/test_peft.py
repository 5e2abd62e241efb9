"""The study of tuning with few parameters: its commands are accepted, and what it writes follows from its runs."""

import argparse
import json

import pytest

from benchmarks.studies import peft
from datasets import DATASETS
from models import MODELS
from tools.weights import resolve
from utils.config.cli import parse_args
from utils.config.load import load_config


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        method="point-mae",
        ckpts=resolve("mini-point-mae"),
        runs=tmp_path,
        data_root=tmp_path / "data",
        out=tmp_path / "a.json",
    )


def finish(folder, kind, accuracy):
    """Leave behind what a run of the main program does."""
    folder.mkdir(parents=True)
    rows = [
        {"kind": "epoch", "epoch": 0, "seconds": 30.0, "memory_mb": 100.0},
        {"kind": "val", "epoch": 0, "accuracy": accuracy},
    ]
    rows += [{"kind": "held_out", "epoch": 0, "accuracy": accuracy}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps({"trained_parameters": len(kind), "parameters": 9}))
    (folder / "ckpt-last.pth").write_bytes(b"1234")


def test_runs_are_commands(args, monkeypatch):
    """Every command loads with its recipe; a run that is there is not repeated; rate and result follow from the rows."""
    commands = []

    def pretend(command, check, cwd):
        flags = parse_args(command[2:])
        config = load_config(flags.config, overrides=flags.set, models=MODELS, datasets=DATASETS)
        commands.append((flags.tune, config))
        folder = cwd / "experiments" / "fine-tuning" / "point-mae" / "mini" / flags.exp_name
        finish(
            folder,
            flags.tune,
            accuracy=config.optimizer.kwargs.lr * 100 + flags.seed / 10 if flags.seed else config.optimizer.kwargs.lr,
        )

    monkeypatch.setattr(peft.subprocess, "run", pretend)
    for kind in peft.KINDS:
        assert peft.choose_rate(args, kind) == 2e-3
    assert len(commands) == 12 and all(config.select == "held_out" and config.held_out == 0.2 for _, config in commands)
    assert [kind for kind, _ in commands[::2]] == list(peft.KINDS)
    runs = [peft.run(args, "lora", 0.01, 2e-3, seed) for seed in (0, 1, 2)]
    _, config = commands[-1]
    assert config.select == "last" and config.max_epoch == config.scheduler.kwargs.epochs == 150
    assert (config.dataset.train.label_fraction, config.dataset.train.fraction_seed) == (0.01, 2)
    assert runs[0]["seconds_per_update"] == 0.2 and runs[0]["trained_parameters"] == 4 and runs[0]["saved_bytes"] == 4
    found = peft.summary(runs)
    assert found["accuracies"] == [0.2, 30.0, 40.0] and found["accuracy"] == pytest.approx(23.4, abs=0.01)
    count = len(commands)
    peft.run(args, "lora", 0.01, 2e-3, 0)
    assert len(commands) == count


def test_updates_are_whole_epochs():
    assert [peft.steps_of(share) for share in peft.UPDATES] == [1, 12, 124]
    assert [peft.updates_of(share) for share in peft.UPDATES] == [150, 156, 248]
