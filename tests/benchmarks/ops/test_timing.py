"""Rounds, their order and their budget."""

import time

import pytest
import torch

from benchmarks.ops import timing
from benchmarks.ops.timing import CudaClock, best_of, interleave, processor_clock, wall_clock


def test_rounds_draw_fresh_inputs_and_begin_with_another_side():
    calls, drawn = [], []

    def side(name):
        return lambda inputs: (lambda value: calls.append((name, value)), inputs)

    def fresh():
        drawn.append(len(drawn))
        return (drawn[-1],)

    def clock(call, args):
        call(*args)
        return float(args[0])

    times = interleave({"a": side("a"), "b": side("b")}, fresh, clock, rounds=3, budget_s=60)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert times == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]}


def test_the_budget_ends_the_rounds_but_leaves_enough_for_a_median():
    times = interleave(
        {"a": lambda inputs: (time.sleep, (0.001,))}, tuple, lambda call, args: 1.0, rounds=100, budget_s=0
    )
    assert len(times["a"]) == timing.FEWEST_ROUNDS


def test_the_wall_clock_averages_quick_calls_and_takes_slow_ones_once():
    quick, slow = [], []
    wall_clock(quick.append, (0,))
    assert len(quick) == 1 + timing.MOST_CALLS
    found = wall_clock(lambda: (slow.append(0), time.sleep(0.03)), ())
    assert len(slow) == 1 and 30 <= found < 1000


def test_the_processor_clock_leaves_out_waiting():
    def work():
        time.sleep(0.05)
        total, started = 0, time.process_time()
        while time.process_time() - started < 0.03:
            total += 1

    assert 30 <= processor_clock(work, ()) < 50


def test_best_of_picks_by_the_clock():
    calls = [("slow", lambda: 5.0), ("quick", lambda: 1.0)]
    assert best_of(calls, (), lambda call, args: call()) == "quick"


@pytest.mark.gpu
def test_the_cuda_clock_sees_longer_work():
    clock, values = CudaClock(), torch.rand(1 << 26, device="cuda")
    short = min(clock(torch.sin, (values[: 1 << 16],)) for _ in range(5))
    assert 0 < short < min(clock(torch.sin, (values,)) for _ in range(5))
