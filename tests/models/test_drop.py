"""What is dropped at random, drawn for the global batch."""

import pytest
import torch
from torch import nn

from models.layers import drop
from models.layers.drop import Dropout, DropPath

ROWS = torch.randn(12, 5, 7, generator=torch.Generator().manual_seed(0))


def dropped(layer: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    return layer.train()(rows)


@pytest.mark.parametrize("layer", [DropPath(0.4), Dropout(0.5)])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_drop_what_one_does(layer, processes, monkeypatch):
    whole = dropped(layer, ROWS)
    assert (whole == 0).any() and (whole != 0).any()
    monkeypatch.setattr(drop, "world_size", lambda: processes)
    for place, rows in enumerate(ROWS.chunk(processes)):
        monkeypatch.setattr(drop, "rank", lambda place=place: place)
        assert torch.equal(dropped(layer, rows), whole[place * len(rows) : (place + 1) * len(rows)])


def test_one_process_draws_as_pytorch_does():
    """The numbers of runs that were begun before stay."""
    assert torch.equal(dropped(Dropout(0.5), ROWS), dropped(nn.Dropout(0.5), ROWS))
    torch.manual_seed(3)
    kept = (torch.rand(12, 1, 1) < 0.6).float()
    assert torch.equal(dropped(DropPath(0.4), ROWS), ROWS * kept / 0.6)


def test_evaluation_drops_nothing():
    for layer in (DropPath(0.4), Dropout(0.5)):
        assert torch.equal(layer.eval()(ROWS), ROWS)
    assert DropPath(0.0).train()(ROWS) is ROWS
