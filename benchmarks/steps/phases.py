"""Where the time of a training step goes: a clock that books it on phases, driven by hooks on the parts of a model."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class Clock:
    """Book milliseconds on the innermost phase that is open.

    On a CUDA device every mark waits for the device, so that steps under this clock are slower than others; their shares count.
    """

    def __init__(self, phases: Sequence[str], device: torch.device):
        self.phases, self.device = tuple(phases), device
        self.spent: dict[str, float] = {}
        self._open: list[str] = []
        self._last = 0.0

    def start(self) -> None:
        """Begin a step in the first phase."""
        self.spent = dict.fromkeys(self.phases, 0.0)
        self._open = [self.phases[0]]
        self._last = self._now()

    def to(self, phase: str) -> None:
        """End the current phase and go on with another in its place."""
        self._book()
        self._open[-1] = phase

    def enter(self, phase: str) -> None:
        """Begin a phase inside the current one."""
        self._book()
        self._open.append(phase)

    def leave(self) -> None:
        """End the current phase; the one around it goes on."""
        self._book()
        self._open.pop()

    def watch(self, module: nn.Module, phase: str, *, then: str | None = None) -> None:
        """Book what a module's forward takes on `phase`; afterwards the phase around it goes on, or `then` in its place."""
        module.register_forward_pre_hook(lambda *_: self.enter(phase))
        module.register_forward_hook(lambda *_: self._done(then))

    def wrap(self, owner: Any, name: str, phase: str, *, then: str | None = None) -> None:
        """Book what a method of an object takes on `phase`, as `watch` does for a module."""
        inner: Callable = getattr(owner, name)

        def call(*args, **kwargs):
            self.enter(phase)
            result = inner(*args, **kwargs)
            self._done(then)
            return result

        setattr(owner, name, call)

    def _done(self, then: str | None) -> None:
        self.leave()
        if then is not None:
            self.to(then)

    def _book(self) -> None:
        now = self._now()
        self.spent[self._open[-1]] += 1000 * (now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype, *, repeats: int = 3) -> float:
    """Return the GFLOP/s of the best of a few products: 8192 x 512 x 512 on the CPU, 8192 x 8192 x 8192 on a GPU, to fill it."""
    rows, inner, columns = (8192, 512, 512) if device.type == "cpu" else (8192, 8192, 8192)
    a, b = (torch.randn(count, inner, device=device).to(dtype) for count in (rows, columns))
    times = []
    clock = Clock(("product",), device)
    for _ in range(repeats):
        clock.start()
        nn.functional.linear(a, b)
        clock.leave()
        times.append(clock.spent["product"])
    return 2e-6 * rows * inner * columns / min(times)
