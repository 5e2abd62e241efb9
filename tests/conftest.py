"""What all tests share: the real data, the device, and what was skipped and why."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

# Triton decides when it is imported whether its kernels run in an interpreter; without a GPU that is the way to test them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["tests.browser"]
ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("M2AE_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(config, items):
    """Skip what this machine lacks, and leave slow tests to `-m slow`."""
    chosen = config.getoption("markexpr", "")
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not (SHARED / "data").is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the real data sets: set M2AE_SHARED"))


def pytest_terminal_summary(terminalreporter):
    """End by saying how many tests were skipped, and why."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    listed = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped: {sum(reasons.values())}" + (f" = {listed}" if listed else ""))


@pytest.fixture(autouse=True)
def same_folder():
    """Fail a test that leaves the process in another folder: the tests after it would look for the recipes there."""
    before = Path.cwd()
    yield
    after = Path.cwd()
    os.chdir(before)
    assert after == before, f"the test left the process in {after}"


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of the real data sets; only for tests marked `data`."""
    return SHARED / "data"
