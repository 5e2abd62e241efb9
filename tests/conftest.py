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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Skip what this machine lacks, leave slow tests to `-m slow`, and keep those of a file that share a fixture together.

    `pytest -n` otherwise deals the tests of a file out to all workers, and each would make the fixture of the module anew.
    """
    chosen = config.getoption("markexpr", "")
    grouped = config.pluginmanager.hasplugin("xdist")
    for item in items:
        if grouped and shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
        if item.get_closest_marker("slow") and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not (SHARED / "data").is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the real data sets: set M2AE_SHARED"))


def shares_a_fixture(item) -> bool:
    """Say whether a test takes a fixture that is made once for its module."""
    known = getattr(item, "_fixtureinfo", None)
    return known is not None and any(made[-1].scope == "module" for made in known.name2fixturedefs.values() if made)


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
def no_pictures(monkeypatch):
    """Leave out the pictures next to reports (`gallery.png`), which take as long as the small runs of tests."""
    monkeypatch.setattr("tools.report.page._write_gallery", lambda path, rows: None)


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of the real data sets; only for tests marked `data`."""
    return SHARED / "data"
