"""The folder of a run: found without torch, used by one process at a time."""

import subprocess
import sys
import time

import pytest

from tools.run_folder import experiment_folder, lock_folder
from utils import ROOT
from utils.config.cli import parse_args
from utils.errors import UserError

CONFIG = ["--config", "cfgs/linear-svm/modelnet40.yaml"]


def test_evaluations_use_the_folder_of_the_run_that_a_checkpoint_is_from(tmp_path):
    run = tmp_path / "experiments" / "debug" / "point-m2ae" / "try"
    run.mkdir(parents=True)
    ckpts = ["--ckpts", str(run / "ckpt-last.pth")]
    recipe = "cfgs/linear-svm/point-m2ae/modelnet40.yaml"

    def folder(*flags):
        return experiment_folder(parse_args([*CONFIG, *ckpts, *flags]), ROOT / recipe).as_posix()

    elsewhere = "experiments/linear-svm/point-m2ae/modelnet40"
    assert folder("--test_svm", "modelnet40") == f"{elsewhere}/default"  # no folder of a run
    (run / "config.yaml").touch()
    assert folder("--test_svm", "modelnet40") == folder("--test") == run.as_posix()
    assert folder("--test", "--exp_name", "default") == f"{elsewhere}/default"
    assert folder("--finetune_model") == f"{elsewhere}/default"


def test_one_process_trains_into_a_folder(tmp_path):
    code = f"import time; from pathlib import Path; from tools.run_folder import lock_folder; lock = lock_folder(Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; print('locked', flush=True); time.sleep(60)"], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(
            UserError, match=rf"{tmp_path}: process {process.pid} is training into it; .*another --exp_name"
        ):
            lock_folder(tmp_path)
    finally:
        process.kill()
        process.wait()
    with lock_folder(tmp_path):  # the system frees what a process that died has held
        pass
    lock_folder(tmp_path).close()


def test_a_run_that_is_there_is_said_before_torch_is_imported(tmp_path):
    folder = tmp_path / "experiments" / "debug" / "point-m2ae" / "there"
    folder.mkdir(parents=True)
    (folder / "ckpt-last.pth").touch()
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--config", "cfgs/debug/point-m2ae.yaml"]
    started = time.monotonic()
    done = subprocess.run([*command, "--exp_name", "there"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "holds a run already; go on with --resume" in done.stderr
    assert " torch" not in done.stderr and time.monotonic() - started < 30
