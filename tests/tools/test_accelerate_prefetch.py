"""Prefetching on a side stream: what is prepared early, in which order, and how tensors are handed over."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tools.accelerate import SideStream, map_tensors, prefetch


class Pair(NamedTuple):
    left: Tensor
    right: int


@dataclass(frozen=True)
class Advice:
    scores: Tensor
    masked: int


class Notes:
    """Stands for a side stream: runs at once, and notes what happened."""

    def __init__(self):
        self.calls = []

    def follow(self):
        self.calls.append("follow")

    def run(self, function, *args):
        value = function(*args)
        self.calls.append(f"run {value}" if isinstance(value, int) else "run to the end")
        return value, "event"

    def hand_over(self, value, event):
        assert event == "event"
        self.calls.append(f"hand over {value}")
        return value


def test_one_batch_is_prepared_early_and_no_more():
    notes, there = Notes(), []
    for item in prefetch(iter(range(0, 30, 10)), notes):
        notes.calls.append(f"train {item}")
        there.append(item)
    assert there == [0, 10, 20]
    first = ["follow", "run 0", "run 10", "hand over 0", "train 0", "run 20", "hand over 10", "train 10"]
    assert notes.calls == [*first, "run to the end", "hand over 20", "train 20"]
    assert list(prefetch([], Notes())) == []


def test_tensors_are_found_wherever_they_are():
    value = {
        "points": torch.zeros(2),
        "mask": Pair(torch.ones(1), 3),
        "list": [torch.ones(2), "text"],
        "advice": Advice(torch.ones(3), 5),
        "none": None,
    }
    doubled = map_tensors(lambda tensor: tensor + 1, value)
    assert doubled["points"].tolist() == [1, 1] and doubled["mask"] == Pair(torch.tensor([2.0]), 3)
    assert doubled["list"][0].tolist() == [2, 2] and doubled["list"][1] == "text"
    assert isinstance(doubled["advice"], Advice) and doubled["advice"].scores.tolist() == [2, 2, 2]
    assert value["points"].tolist() == [0, 0] and doubled["none"] is None


@pytest.mark.gpu
def test_a_side_stream_hands_over_what_it_made():
    side = SideStream(torch.device("cuda"))
    base = torch.full((1 << 22,), 3.0, device="cuda")
    pairs = prefetch(((batch, {"sum": (base * batch).sum()}) for batch in range(5)), side)
    found = [(batch, early["sum"].item()) for batch, early in pairs]
    assert found == [(batch, 3.0 * batch * (1 << 22)) for batch in range(5)]
