"""Steps in parts: what runs ahead, in which order, and what is found in their inputs."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tools.steps import SideStream, Step, map_tensors, run_ahead


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
        self.seen = []

    def follow(self):
        self.seen.append("follow")

    def run(self, function):
        value = function()
        self.seen.append(f"run {None if value is None else value[0]}")
        return value, "event"

    def hand_over(self, value, event):
        assert event == "event"
        self.seen.append(f"hand over {value[0]}")
        return value


def test_parts_of_a_step_follow_each_other():
    seen = []
    step = Step(
        ahead=lambda batch: seen.append("ahead") or batch + 1,
        ready=lambda batch, early: seen.append("ready") or (batch, early),
        compute=lambda inputs: seen.append("compute") or {"loss": sum(inputs)},
        seed=lambda batch: seen.append(f"seed {batch}"),
    )
    assert step(3) == {"loss": 7} and seen == ["ahead", "ready", "seed 3", "compute"]
    assert Step.whole(lambda batch: {"loss": batch})(5) == {"loss": 5}
    assert "draws its numbers" in Step.whole(len).unrecordable


def test_one_batch_is_made_ready_ahead_and_no_more():
    here = list(run_ahead(lambda batch: batch * 10, range(3), None))
    notes = Notes()
    there = []
    for pair in run_ahead(lambda batch: batch * 10, range(3), notes):
        notes.seen.append(f"train {pair[0]}")
        there.append(pair)
    assert there == here == [(0, 0), (1, 10), (2, 20)]
    first = ["follow", "run 0", "run 1", "hand over 0", "train 0", "run 2", "hand over 1", "train 1"]
    assert notes.seen == [*first, "run None", "hand over 2", "train 2"]
    assert list(run_ahead(len, [], Notes())) == []


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
    pairs = run_ahead(lambda batch: {"sum": (base * batch).sum()}, range(5), side)
    found = [(batch, early["sum"].item()) for batch, early in pairs]
    assert found == [(batch, 3.0 * batch * (1 << 22)) for batch in range(5)]
