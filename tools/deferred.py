"""Work beside training: one thing after the other on a thread of its own, results booked by whoever trains."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Deferred:
    """Do what touches no device and no weights while training goes on, or, not `beside`, at once.

    What is started is done in order. Nothing of a result is seen before `finish`, so that it is booked at the same place in every run.
    """

    def __init__(self, *, beside: bool = False):
        self.beside = beside
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beside-training") if beside else None
        self._waiting: list[tuple[Future, Callable[[Any], None]]] = []

    def start(self, work: Callable[[], Any], book: Callable[[Any], None] = lambda value: None) -> None:
        """Start `work`; `book` gets what it returns, in `finish`, or at once."""
        if self._pool is None:
            book(work())
        else:
            self._waiting.append((self._pool.submit(work), book))

    def finish(self) -> None:
        """Wait for what was started and book it; whatever it raised is raised here."""
        while self._waiting:
            future, book = self._waiting.pop(0)
            book(future.result())

    def close(self) -> None:
        """Finish, and end the thread."""
        try:
            self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown()


def goes_beside(asked: str, device: torch.device) -> bool:
    """Resolve `--evaluation`: beside training where a GPU trains and a core is left; between epochs where the CPU trains."""
    if asked == "auto":
        return device.type == "cuda" and len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0]) > 1
    return asked == "beside"
