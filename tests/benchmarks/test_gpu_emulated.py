"""The table of the emulated kernels: a run that was stopped goes on, and no row outlives what it was measured on."""

import json

import pytest

from benchmarks import gpu_emulated
from tests.extensions.cuda_on_cpu.cases import small_cases


@pytest.fixture
def made(monkeypatch):
    """Replace what takes minutes; returns the names of the rows that were made."""
    names = []

    def row(name):
        names.append(name)
        return {"clean": name != "large set, emd", "complaints": ["auction: 1 of 9 values differ"], "cases": 3}

    wanted = ["small set", "small set, threads in random order", "large set, emd"]
    monkeypatch.setattr(gpu_emulated, "rows", lambda: [(name, lambda name=name: row(name)) for name in wanted])
    return names


def test_rows_are_kept_for_the_same_sources(made, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    assert gpu_emulated.main(["--out", str(out), "--rows", "small"]) == 0
    assert gpu_emulated.main(["--out", str(out)]) == 1  # a set found something
    assert made == ["small set", "small set, threads in random order", "large set, emd"]
    assert "| large set, emd | 3 |  |  | auction: 1 of 9 values differ |" in capsys.readouterr().out
    monkeypatch.setattr(gpu_emulated, "sources", lambda: "others")
    assert gpu_emulated.main(["--out", str(out), "--rows", "small"]) == 0
    assert made[3:] == made[:2] and list(json.loads(out.read_text())["rows"]) == made[:2]


def test_every_family_and_every_mutant_has_a_row():
    names = [name for name, _ in gpu_emulated.rows()]
    families = {case.family for case in small_cases()}
    assert {name.split()[-1] for name in names if name.startswith("large set")} == families
    assert sum(name.startswith("mutant: ") for name in names) == len(gpu_emulated.MUTANTS) >= 6
