"""Building and falling back: no compiler, a broken compiler, a forced reference, several processes at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from extensions.m2ae_ops import backend
from extensions.m2ae_ops.build import build

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO, format="%(message)s")
from extensions import fps
from extensions.m2ae_ops import backend
print(fps(torch.tensor([[[0., 0, 0], [1, 0, 0], [3, 0, 0]]]), 3).tolist(), backend())
"""


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run SCRIPT in a fresh process with an empty cache."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "M2AE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)


def test_without_a_compiler_the_reference_serves(tmp_path):
    answer = run(tmp_path, CXX="no-such-compiler")
    assert answer.stdout.startswith("[[0, 2, 1]] reference (no C++ compiler found (no-such-compiler)")
    assert answer.stderr.count("using the PyTorch reference") == 1
    assert "python -m extensions.m2ae_ops.build --verbose" in answer.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="builds on Linux only")
def test_a_failed_build_does_not_stop_the_program(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\necho it broke >&2\nexit 1\n')
    compiler.chmod(0o755)
    answer = run(tmp_path / "cache", CXX=str(compiler))
    assert answer.stdout.startswith("[[0, 2, 1]] reference (the compiler failed; its output is in ")
    log = next((tmp_path / "cache").glob("ops-*/build.log"))
    assert str(log) in answer.stderr and "it broke" in log.read_text()
    assert not list((tmp_path / "cache").glob("ops-*/build-*"))


def test_a_cache_that_cannot_be_written_does_not_stop_the_program(tmp_path):
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler")
    (tmp_path / "file").write_text("")
    answer = run(tmp_path / "file")
    assert answer.stdout.startswith("[[0, 2, 1]] reference (cannot write to the cache")


def test_the_reference_can_be_forced(tmp_path):
    answer = run(tmp_path, M2AE_OPS="reference")
    assert answer.stdout == "[[0, 2, 1]] reference (M2AE_OPS=reference)\n"
    assert not list(tmp_path.iterdir())


def test_the_library_may_load_before_the_ops_are_declared():
    if not backend().startswith("compiled"):
        pytest.skip(f"no compiled library: {backend()}")
    command = [sys.executable, "-c", f"import torch; torch.ops.load_library({str(build())!r})\n{SCRIPT}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("[[0, 2, 1]] compiled (")


@pytest.mark.slow
def test_several_processes_build_once(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "M2AE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=env, **pipes) for _ in range(3)]
    answers = [process.communicate(timeout=600) for process in processes]
    if "no C++ compiler" in answers[0][0]:
        pytest.skip("no C++ compiler")
    assert all(out.startswith("[[0, 2, 1]] compiled (") for out, _ in answers)
    assert sum(err.count("compiling the CPU kernels") for _, err in answers) == 1
