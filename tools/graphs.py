"""CUDA graphs: a whole step, forward, backward and optimizer, is recorded once and then started by one call of the host.

A step of Point-M2AE is thousands of short kernels, and a host starts them more slowly than a GPU runs them. What is recorded reads and
writes the same memory each time, so inputs are copied to where the recording reads them, learning rates lie on the device, and seeds
are given before each run (`torch.manual_seed`), which recordings follow.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tools.context import RunContext
from tools.run_state import RunState
from tools.steps import Step, map_tensors
from utils.dist import world_size
from utils.errors import UserError

WARM_UP = 3  # steps on inputs of one kind before they are recorded: libraries choose their kernels and memory then
# How far a recorded step may be from the step itself: sums in another order, which Adam makes larger where gradients are nearly zero.
LOSSES, UPDATE = 0.02, 0.2


class Recording:
    """A function without arguments, recorded on a CUDA device; `outputs` are in the same memory after each replay."""

    def __init__(self, function: Callable[[], Any], stream: torch.cuda.Stream):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self.outputs = function()

    def replay(self) -> None:
        self._graph.replay()


class StepGraph:
    """Run a step on the device, and record it where the same kind of inputs comes again.

    The first steps run as they are, on the stream that records later; they are steps as any other. Inputs of another kind (shapes, types,
    or numbers that are no tensors) begin again. What was recorded runs once beside the step itself, from the same state, before it takes
    its place. Where recording fails, or differs, steps run as they are from then on.

    Args:
        optimizer: its learning rates and gradients are looked after.
        buffers: what a step changes besides parameters and the state of the optimizer.
        device: a CUDA device.
        warn: called once with why recording failed.
        record: (function, stream) -> `Recording`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        buffers: Iterable[Tensor],
        device: torch.device,
        *,
        warn: Callable[[str], None],
        record: Callable = Recording,
    ):
        self._optimizer, self._buffers, self._device = optimizer, list(buffers), device
        self._warn, self._record = warn, record
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._failed = False
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.forget()

    def forget(self) -> None:
        """Begin again, because something that a recording holds fast has changed."""
        self._kind, self._seen = None, 0
        self._recording = self._inputs = None

    def __call__(self, function: Callable[[Any], Any], inputs: Any, seed: Callable[[], None] = lambda: None) -> Any:
        """Return what a function makes of its inputs, as tensors that the next call may overwrite.

        Args:
            function: a step with its update, which leaves no gradients behind; the same one at each call.
            seed: gives the seed of the step, before it runs.
        """
        kind = map_tensors(lambda tensor: (tensor.shape, tensor.dtype, tensor.device), inputs)
        if self._kind is None or kind != self._kind:
            self.forget()
            self._kind = kind
        self._seen += 1
        if self._recording is None and self._seen > WARM_UP and not self._failed:
            self._try_to_record(function, inputs)
            if self._recording is not None:
                return self._compare(function, inputs, seed)
        seed()
        return self._run(function, inputs) if self._recording is None else self._replay(inputs)

    def _replay(self, inputs: Any) -> Any:
        _copy(inputs, self._inputs)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._recording.replay()
        return self._recording.outputs

    def _compare(self, function: Callable[[Any], Any], inputs: Any, seed: Callable[[], None]) -> Any:
        """Run the recording and then, from the same state, the step itself, which counts; forget a recording that differs."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state = [value for entry in self._optimizer.state.values() for value in entry.values()]
        changed = [*parameters, *self._buffers, *(value for value in state if isinstance(value, Tensor))]
        before = [tensor.detach().clone() for tensor in changed]
        seed()
        replayed = map_tensors(torch.clone, self._replay(inputs))
        after = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for tensor, kept in zip(changed, before, strict=True):
                tensor.copy_(kept)
        seed()
        outputs = self._run(function, inputs)
        parameters = [p.detach() for p in parameters]
        apart, update = _distance(after, parameters), _distance(before[: len(after)], parameters)
        if not (_close(replayed, outputs) and apart <= UPDATE * update):
            self._failed = True
            self.forget()
            self._warn("a recorded step differs from the step itself")
        return outputs

    def _run(self, function: Callable[[Any], Any], inputs: Any) -> Any:
        """Run a step as it is, on the stream that records: what autograd keeps between steps belongs to the stream of its making."""
        if self._stream is None:
            return function(inputs)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function(inputs)
        current.wait_stream(self._stream)
        return outputs

    def _try_to_record(self, function: Callable[[Any], Any], inputs: Any) -> None:
        groups = self._optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
        self._inputs = map_tensors(torch.clone, inputs)
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            self._recording = self._record(lambda: function(self._inputs), self._stream)
        except RuntimeError as error:
            self._failed = True
            self.forget()
            self._warn(str(error).strip().splitlines()[0])
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)
            # Gradients lie in memory of the recording, which needs nobody to hold them.
            self._optimizer.zero_grad(set_to_none=True)


def _distance(some: list[Tensor], others: list[Tensor]) -> float:
    """Return the Euclidean distance of two lists of tensors."""
    return sum((a.double() - b.double()).square().sum() for a, b in zip(some, others, strict=True)).sqrt().item()


def _close(replayed: Any, outputs: Any) -> bool:
    """Say whether two results agree up to rounding; numbers that are not finite agree with each other."""
    found: list[Tensor] = []
    map_tensors(found.append, replayed)
    own = iter(found)
    same: list[bool] = []
    map_tensors(
        lambda value: same.append(
            torch.allclose(next(own).double(), value.double(), rtol=LOSSES, atol=1e-6, equal_nan=True)
        ),
        outputs,
    )
    return all(same)


def why_not(run: RunContext, step: Step, *, pieces: int) -> str | None:
    """Say why the steps of a run cannot be recorded, or return None."""
    config = run.config
    reasons = {
        f"steps run on {run.device}": run.device.type != "cuda",
        "several processes average gradients while these are computed": world_size() > 1,
        f"step_per_update is {config.step_per_update}": config.step_per_update != 1,
        f"batches go through the model in {pieces} pieces": pieces != 1,
        "fp16 scales its losses by what it finds": config.precision == "fp16",
    }
    return next((reason for reason, holds in reasons.items() if holds), step.unrecordable)


def open_graph(run: RunContext, step: Step, state: RunState, *, pieces: int) -> StepGraph | None:
    """Return what records the steps of a run as `--cuda_graph` asks, or None where they run as they are.

    Raises:
        UserError: recording is asked for and cannot be.
    """
    asked = run.args.cuda_graph
    reason = why_not(run, step, pieces=pieces)
    if asked == "on" and reason is not None:
        raise UserError(f"--cuda_graph on: steps cannot be recorded, {reason}; change that, or use --cuda_graph auto")
    if asked == "off" or reason is not None:
        return None
    warn = lambda why: run.log.warning(f"--cuda_graph: recording failed, so steps run without ({why})")  # noqa: E731
    return StepGraph(state.optimizer, state.model.buffers(), run.device, warn=warn)


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors of a value to those of another one of the same kind."""
    found: list[Tensor] = []
    map_tensors(found.append, source)
    own = iter(found)
    map_tensors(lambda tensor: tensor.copy_(next(own), non_blocking=True), target)
