"""A training step in parts, so that what needs no trained weights can be made ready one step ahead."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from datasets.batches import Batch


@dataclass(frozen=True)
class Step:
    """What a step computes of a batch: `compute(ready(batch, ahead(batch)))`, a dict of scalars with "loss".

    Attributes:
        ahead: batch -> anything. Reads no weights that train, so that it may run before the step before it is over.
        ready: (batch, what `ahead` gave) -> everything that `compute` reads but weights: nothing is drawn or copied after it.
        compute: inputs -> the scalars. On a CUDA device it may be recorded, and then runs again without its Python code.
        seed: called with the batch before `compute`, to seed what layers draw.
        unrecordable: why `compute` cannot be recorded, or None.
    """

    ahead: Callable[[Batch], Any]
    ready: Callable[[Batch, Any], Any]
    compute: Callable[[Any], dict[str, Tensor]]
    seed: Callable[[Batch], None] = lambda batch: None
    unrecordable: str | None = None

    @classmethod
    def whole(cls, compute: Callable[[Batch], dict[str, Tensor]], **keys) -> "Step":
        """Return a step whose parts nobody took apart."""
        reason = "the step draws its numbers as it computes"
        return cls(lambda batch: None, lambda batch, _: batch, compute, unrecordable=reason, **keys)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self.finish(batch, self.ahead(batch))

    def finish(self, batch: Batch, early: Any) -> dict[str, Tensor]:
        """Compute what is left of a step after `ahead`."""
        inputs = self.ready(batch, early)
        self.seed(batch)
        return self.compute(inputs)


class SideStream:
    """A stream of a CUDA device on which work for the next step runs beside the current one."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, function: Callable, *args) -> tuple[Any, torch.cuda.Event]:
        """Start a function; returns what it gives and an event that says when that is there."""
        with torch.cuda.stream(self._stream):
            value = function(*args)
            return value, self._stream.record_event()

    def follow(self) -> None:
        """Let what is started from now on wait for what the device has to do already."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def hand_over(self, value: Any, event: torch.cuda.Event) -> Any:
        """Let the current stream wait for a value, and keep its memory until the current stream has used it."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        map_tensors(lambda tensor: tensor.record_stream(current) if tensor.is_cuda else None, value)
        return value


def run_ahead(
    ahead: Callable[[Batch], Any], batches: Iterable[Batch], side: SideStream | None
) -> Iterator[tuple[Batch, Any]]:
    """Yield batches with what `ahead` gives for each; on a side stream it is one batch ahead of what was asked for."""
    if side is None:
        for batch in batches:
            yield batch, ahead(batch)
        return
    batches = iter(batches)

    def prepare() -> tuple[Batch, Any] | None:
        batch = next(batches, None)
        return None if batch is None else (batch, ahead(batch))

    side.follow()
    waiting = side.run(prepare)
    while waiting[0] is not None:
        pair, event = waiting
        waiting = side.run(prepare)
        yield side.hand_over(pair, event)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a value with each tensor in its dicts, lists, tuples and dataclasses replaced by what a function makes of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        entries = [map_tensors(function, entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{entry.name: map_tensors(function, getattr(value, entry.name)) for entry in fields(value)}
        )
    return value
