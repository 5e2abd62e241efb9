"""Clocks, interleaved rounds and the facts about the machine, shared by all speed measurements."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch

STEADY_MS = 20.0
"""A call quicker than this is repeated and averaged, because a single one would mostly measure the caches it finds."""
MOST_CALLS = 10
FEWEST_ROUNDS = 3
FLUSH_BYTES = 1 << 29


def wall_clock(call: Callable, args: tuple) -> float:
    """Return the milliseconds of one call on the CPU; of quick calls the mean of several, the first left out."""
    return _timed(call, args, time.perf_counter)


def processor_clock(call: Callable, args: tuple) -> float:
    """Return what `wall_clock` does in processor time of this process: what other programs take meanwhile does not count.

    Only for work on one thread. Threads that wait for each other spend processor time on it.
    """
    return _timed(call, args, time.process_time)


CLOCKS = {"wall": wall_clock, "processor": processor_clock}


def _timed(call: Callable, args: tuple, now: Callable[[], float]) -> float:
    started = now()
    call(*args)
    once = 1000 * (now() - started)
    if once >= STEADY_MS:
        return once
    calls = min(MOST_CALLS, int(STEADY_MS / max(once, 1e-3)) + 1)
    started = now()
    for _ in range(calls):
        call(*args)
    return 1000 * (now() - started) / calls


class CudaClock:
    """Time one call on the current CUDA stream by events, after its inputs were driven out of the L2 cache."""

    def __init__(self):
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")

    def __call__(self, call: Callable, args: tuple) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        # Filling the buffer several times also keeps the device busy while the call is being launched, so that the
        # events enclose the kernels and not the time that Python takes to start the first of them.
        for value in range(4):
            self._flush.fill_(value)
        begin.record()
        call(*args)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def interleave(
    sides: Mapping[str, Callable[[tuple], tuple[Callable, tuple]]],
    fresh: Callable[[], tuple],
    clock: Callable[[Callable, tuple], float],
    *,
    rounds: int,
    budget_s: float,
) -> dict[str, list[float]]:
    """Time all sides in turn, round by round, each round on a fresh input and beginning with another side.

    Args:
        sides: name -> function that turns the inputs of a round into (call, arguments); its own time does not count.
        fresh: draws the inputs of a round.
        clock: returns the milliseconds of `call(*arguments)`.
        rounds: at most so many.
        budget_s: no new round after so many seconds, but `FEWEST_ROUNDS` are always made (or `rounds`, if fewer).

    Returns:
        Milliseconds by side, one value a round.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    started = time.perf_counter()
    for turn in range(rounds):
        inputs = fresh()
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            times[name].append(clock(*sides[name](inputs)))
        if turn + 1 >= FEWEST_ROUNDS and time.perf_counter() - started > budget_s:
            break
    return times


def best_of(calls: Iterable[tuple[str, Callable]], args: tuple, clock: Callable, tries: int = 3) -> str:
    """Return the name of the quickest of several calls on the same arguments, each by its best try."""
    found = {}
    for name, call in calls:
        call(*args)
        found[name] = min(clock(call, args) for _ in range(tries))
    return min(found, key=found.get)


def median(times: list[float]) -> float:
    """Return the median of times."""
    return statistics.median(times)


def processor() -> str:
    """Return the model name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # Not Linux: the platform module knows at least the architecture.
    return platform.processor() or platform.machine()


def machine() -> dict[str, str | int]:
    """Return what a reader needs to know about the machine to interpret a time."""
    from extensions.m2ae_ops import backend

    facts: dict[str, str | int] = {
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ops": backend(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda or ""
    return facts
