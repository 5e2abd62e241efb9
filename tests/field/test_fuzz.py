"""Broken inputs by the hundred: a result or one message each."""

import os
import subprocess
import sys

import pytest

from tests.field import fuzz


def test_a_few_broken_inputs_of_each_kind(tmp_path, caplog):
    caplog.set_level("ERROR")
    report = fuzz.run(4 * len(fuzz.SUBJECTS), seed=int(os.environ.get("M2AE_FUZZ_SEED", 0)), folder=tmp_path)
    assert report.failures == []
    assert {name for name, _ in report.outcomes} == {subject.name for subject in fuzz.SUBJECTS}


def test_good_inputs_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "broken", lambda data, draw: data)
    report = fuzz.run(len(fuzz.SUBJECTS), seed=0, folder=tmp_path)
    assert {kind for _, kind in report.outcomes} == {"result"}


@pytest.mark.slow
def test_many_broken_inputs_of_each_kind():
    """Each seed in a process of its own, so that a signal would be seen."""
    for seed in range(1, 4):
        command = [sys.executable, "-W", "ignore", "-m", "tests.field.fuzz", "--cases", "1000", "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0 and ", 0 failures," in done.stdout, done.stdout[-5000:]
