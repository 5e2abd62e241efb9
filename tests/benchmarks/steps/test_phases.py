"""The clock books every millisecond of a step on one phase, the innermost that is open."""

import pytest
import torch
from torch import nn

from benchmarks.steps.phases import Clock, matrix_rate


class Ticking(Clock):
    """A clock whose time passes when a test says so."""

    def __init__(self, phases):
        super().__init__(phases, torch.device("cpu"))
        self.now = 0.0

    def _now(self):
        return self.now

    def wait(self, milliseconds):
        self.now += milliseconds / 1000


class Waiting(nn.Module):
    def __init__(self, clock, milliseconds, inner=None):
        super().__init__()
        self.clock, self.milliseconds, self.inner = clock, milliseconds, inner

    def forward(self, x):
        self.clock.wait(self.milliseconds)
        return x if self.inner is None else self.inner(x)


def test_what_is_inside_counts_for_itself_only():
    clock = Ticking(("data", "encoder", "embedding", "decoder"))
    encoder = Waiting(clock, 5, Waiting(clock, 3))
    clock.watch(encoder, "encoder", then="decoder")
    clock.watch(encoder.inner, "embedding")
    for _ in range(2):  # a second step begins at zero
        clock.start()
        clock.wait(2)
        encoder(torch.zeros(1))
        clock.wait(7)
        clock.leave()
        assert clock.spent == pytest.approx({"data": 2, "encoder": 5, "embedding": 3, "decoder": 7})


def test_a_method_is_watched_and_keeps_its_result():
    clock = Ticking(("rest", "grouping"))
    model = Waiting(clock, 0)

    def group(points, *, size):
        clock.wait(4)
        return points + size

    model.group = group
    clock.wrap(model, "group", "grouping")
    clock.start()
    assert model.group(1, size=2) == 3
    clock.wait(1)
    clock.to("grouping")
    clock.wait(2)
    clock.leave()
    assert clock.spent == pytest.approx({"rest": 1, "grouping": 6})


def test_the_matrix_rate_is_a_rate():
    assert 0.1 < matrix_rate(torch.device("cpu"), torch.float32, repeats=1) < 1e6
