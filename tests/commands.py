"""Runs of the main program that judge a model as they train: what they wrote, and that they go on exactly where they stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

import main
from datasets import DATASETS
from models import MODELS, build_model
from utils.config.load import load_config
from utils.files import read_checkpoint

ROOT = Path(__file__).parent.parent
TIMING = {"seconds", "samples_per_second", "memory_mb"}


def rows(folder, *kinds):
    """Return the rows of some kinds of a run's metrics, without what differs from run to run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in lines]
    return [row for row in found if row["kind"] in kinds]


def run_in_processes(flags, count=2):
    """Run the main program in several processes on the CPU, one thread each; it must end well."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={count}",
        str(ROOT / "main.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launch, *flags, "--launcher", "pytorch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def pretrained(path, method="point-mae"):
    """Write a checkpoint of the untrained debug model, as pre-training writes it."""
    config = load_config(ROOT / "cfgs" / "debug" / f"{method}.yaml", models=MODELS, datasets=DATASETS)
    torch.manual_seed(5)
    torch.save({"base_model": build_model(config.model).state_dict(), "epoch": 1}, path)
    return path


def check_exact_resume(monkeypatch, module, arguments, folder, *, at_call, kinds, name="augment"):
    """Stop a run in mid-epoch, go on, and compare with the run `whole` beside it, bit for bit.

    Args:
        module: the runner, which calls its function `name` once a step; the run is stopped at call `at_call`, the third step of its epoch.
        arguments: name, flags -> command line.
        kinds: rows of the metrics that must be the same.
    """
    calls, original = [], getattr(module, name)

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == at_call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(module, name, stopping)
    assert main.main(arguments("stopped")) == 128 + signal.SIGTERM
    monkeypatch.setattr(module, name, original)
    assert read_checkpoint(folder / "stopped" / "ckpt-last.pth")["pending"]["step"] == 2
    assert main.main(arguments("stopped", "--resume")) == 0
    a, b = (read_checkpoint(folder / name / "ckpt-last.pth") for name in ("whole", "stopped"))
    assert a["best_metrics"] == b["best_metrics"] and a["metrics"] == b["metrics"]
    assert all(torch.equal(value, b["base_model"][key]) for key, value in a["base_model"].items())
    assert rows(folder / "whole", *kinds) == rows(folder / "stopped", *kinds)


def check_late_evaluation(monkeypatch, evaluator, arguments, folder, *, kinds):
    """Kill a run while an epoch is evaluated: going on evaluates it first, and the best epoch is not lost.

    Args:
        evaluator: the class whose method `evaluate` evaluates a model.
        arguments: name, flags -> command line.
        kinds: rows of the metrics that must be those of the run `whole` beside it.
    """
    original = evaluator.evaluate

    def killed(self, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator, "evaluate", killed)
    assert main.main(arguments("killed")) == 130
    monkeypatch.setattr(evaluator, "evaluate", original)
    assert main.main(arguments("killed", "--resume")) == 0
    assert rows(folder / "killed", *kinds) == rows(folder / "whole", *kinds)
