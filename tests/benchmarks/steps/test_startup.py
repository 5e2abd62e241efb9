"""Start-up: what a pre-training run imports before its first step, and what is said when there is none."""

import json

import pytest

from benchmarks.steps import startup


def test_a_start_imports_no_heavy_modules(tmp_path):
    """Each of these takes from a tenth of a second to over one; none is used before the first evaluation, log file or report."""
    out = tmp_path / "startup.json"
    row = startup.start_once(startup.CONFIGS[0], startup.FORMS["first step"], threads=1)
    assert row["heavy"] == []
    assert row["cpu_s"] > 0
    startup.write(out, [row], 1, [])
    assert json.loads(out.read_text())["rows"] == [row]


def test_heavy_modules_are_noticed():
    assert startup.loaded(["json", "a_module_that_is_not_there"]) == ["json"]


def test_a_run_without_a_step_is_an_error():
    with pytest.raises(SystemExit, match="no first step"):
        startup.start_once("cfgs/debug/absent.yaml", [], threads=1)
