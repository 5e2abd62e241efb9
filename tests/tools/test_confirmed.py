"""What a run has confirmed on a device, and where that no longer holds."""

import torch

from tools import confirmed
from tools.confirmed import GRAPH, SIDE_STREAM, confirm, is_confirmed

CPU = torch.device("cpu")


def test_what_was_confirmed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path / "cache"))
    assert not is_confirmed(GRAPH, CPU)
    confirm([GRAPH, SIDE_STREAM], CPU)
    assert is_confirmed(GRAPH, CPU) and is_confirmed(SIDE_STREAM, CPU)
    confirm([SIDE_STREAM], CPU)  # a later run found otherwise
    assert not is_confirmed(GRAPH, CPU) and is_confirmed(SIDE_STREAM, CPU)


def test_it_holds_for_these_versions_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    confirm([GRAPH], CPU)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert not is_confirmed(GRAPH, CPU)
    monkeypatch.undo()
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    other = tmp_path / "accelerate.py"
    other.write_text("# changed")
    monkeypatch.setattr(confirmed, "CODE", other)
    assert not is_confirmed(GRAPH, CPU)


def test_a_file_that_is_none_of_ours_confirms_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("M2AE_CACHE", str(tmp_path))
    (tmp_path / "confirmed.json").write_text("[1,")
    assert not is_confirmed(GRAPH, CPU)
