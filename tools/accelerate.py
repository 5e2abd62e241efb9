"""What makes the training loop faster, from outside: `AcceleratedTrainer` is `tools.train.Trainer` with the same numbers.

CUDA graphs capture a whole step. A side stream prefetches the inputs of the next one. Asynchronous work, evaluations
and checkpoints, goes on while training does. `--compile` compiles the model. A dry run of one step finds out whether
a batch fits into memory, into how many micro-batches it must be cut, and whether a compiled model runs at all.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batches import Batch, Batches
from models.base import MaskedAutoencoder
from models.layers.embed import PatchEmbed
from models.layers.norm import BatchNorm
from models.layers.transformer import Block
from tools.confirmed import GRAPH, SIDE_STREAM, is_confirmed
from tools.context import RunContext
from tools.run_state import RunState
from tools.train import EpochLog, Task, Trainer, Values
from utils.dist import world_size
from utils.errors import UserError

# Dropout and drop path take the numbers that they would without the compiler, so that its results differ by rounding alone.
COMPILE_OPTIONS = {"fallback_random": True}
WARM_UP = 3  # steps on inputs of one kind before they are captured: libraries choose their kernels and memory then
# How far a captured step may be from the step itself: sums in another order, which Adam makes larger where gradients are nearly zero.
LOSSES, UPDATE = 0.02, 0.2
CPU_ALLOCATOR = "can't allocate memory"  # what the CPU allocator says; CUDA has an exception of its own


class AcceleratedTrainer(Trainer):
    """The training loop with all accelerators that the flags ask for and the device has."""

    def __init__(self, task: Task, state: RunState, batches: Batches, **keys):
        run = task.run
        if run.args.compile:
            compile_model(state.model, run.device)
        super().__init__(task, state, batches, **keys)
        self.asynchronous = task.asynchronous and is_asynchronous(run.args.evaluation, run.device)
        self.background = Background() if self.asynchronous else None
        self.graph: StepGraph | None = None
        self.side = SideStream(run.device) if uses_side_stream(run) else None
        self._tried = False

    def before_steps(self, epoch: int) -> None:
        """Try the first step of the run, and find out whether it can be captured."""
        if not self._tried:
            self._tried = True
            batch = self.first_batch(epoch)
            self.micro_batches = dry_run(self, batch)
            self.graph = open_graph(self, batch)
        self.step = super().step if self.graph is None else self.captured_step

    def train_steps(self, epoch: int, log: EpochLog) -> bool:
        """Train as the plain loop does; where memory runs out, say which batch would fit."""
        try:
            return super().train_steps(epoch, log)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # What the exception holds is freed before smaller batches are tried.
        raise too_large(self, self.first_batch(epoch))

    def prepared(self, epoch: int) -> Iterator[tuple[Batch, Any]]:
        """Yield what the plain loop does; on a GPU the next batch is prepared while a step runs."""
        pairs = super().prepared(epoch)
        return pairs if self.side is None else prefetch(pairs, self.side)

    def captured_step(self, batch: Batch, epoch: int, inputs: Any) -> tuple[Values, Tensor]:
        """Run a step by a CUDA graph: what `step` does, with the same inputs and results."""
        with self.autocast():
            inputs = self.task.complete(batch, epoch, inputs)
        values, finite = self.graph(self._whole_step, inputs, seed=partial(self.seed_layers, batch, epoch))
        self.task.after_update()
        return values, finite

    def _whole_step(self, inputs: Any) -> tuple[Values, Tensor]:
        with self.autocast():
            values = self.task.compute(self.wrapped, inputs)
        values["loss"].backward()
        finite = self.update()
        values = {name: value.detach() for name, value in values.items()}
        return values, torch.isfinite(values["loss"]) & finite

    def set_momentum(self, momentum: float) -> None:
        """Give all batch norms a momentum; a CUDA graph, which holds the one before, is captured anew where it is another one."""
        norms = (module for module in self.state.model.modules() if isinstance(module, BatchNorm))
        if self.graph is not None and any(norm.momentum != momentum for norm in norms):
            self.graph.forget()
        super().set_momentum(momentum)

    def start(self, work: Callable[[], Any], then: Callable[[Any], None] = lambda result: None) -> None:
        """Do `work` while training goes on; `then` gets its result in `finish_pending`."""
        if self.background is None:
            super().start(work, then)
        else:
            self.background.start(work, then)

    def finish_pending(self) -> None:
        """Wait for what was started, and hand out its results."""
        if self.background is not None:
            self.background.finish()

    def close(self) -> None:
        """Finish what was started, and end its thread."""
        if self.background is not None:
            self.background.close()

    def snapshot(self) -> dict:
        """Return the checkpoint of the state as it is; a copy where it is written while training goes on."""
        checkpoint = super().snapshot()
        if self.background is None:
            return checkpoint
        return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)


# Asynchronous work.


class Background:
    """Do one thing after the other on a thread of its own; results are handed out in `finish`, at the same place in every run."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="asynchronous")
        self._pending: list[tuple[Future, Callable[[Any], None]]] = []

    def start(self, work: Callable[[], Any], then: Callable[[Any], None] = lambda result: None) -> None:
        """Start `work`; `then` gets what it returns, in `finish`."""
        self._pending.append((self._pool.submit(work), then))

    def finish(self) -> None:
        """Wait for what was started and hand out the results; whatever it raised is raised here."""
        while self._pending:
            future, then = self._pending.pop(0)
            then(future.result())

    def close(self) -> None:
        """Finish, and end the thread."""
        try:
            self.finish()
        finally:
            self._pool.shutdown()


def is_asynchronous(asked: str, device: torch.device) -> bool:
    """Resolve `--evaluation`: asynchronous where a GPU trains and a core is left; between epochs where the CPU trains."""
    if asked == "auto":
        return device.type == "cuda" and len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0]) > 1
    return asked == "beside"


# Prefetching.


def uses_side_stream(run: RunContext) -> bool:
    """Return whether inputs are prefetched on a stream of their own: on a GPU where a run has confirmed that; logs what is off."""
    if run.device.type != "cuda":
        return False
    names = [SIDE_STREAM, *([GRAPH] if run.args.cuda_graph == "auto" else [])]
    off = [name for name in names if not is_confirmed(name, run.device)]
    if off:
        device = torch.cuda.get_device_name(run.device)
        run.log.info(f"without {' and '.join(off)}: not yet confirmed on {device}; `python -m tools.doctor` does that")
    return SIDE_STREAM not in off


class SideStream:
    """A stream of a CUDA device on which inputs of the next step are prepared while the current one runs."""

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


def prefetch(items: Iterable[Any], side: SideStream) -> Iterator[Any]:
    """Yield items, each of which is made on a side stream, one item before it is asked for."""
    items, end = iter(items), object()
    side.follow()
    pending = side.run(next, items, end)
    while pending[0] is not end:
        value, event = pending
        pending = side.run(next, items, end)
        yield side.hand_over(value, event)


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


# CUDA graphs.


class CapturedCall:
    """A function without arguments, captured on a CUDA device; `outputs` are in the same memory after each replay."""

    def __init__(self, function: Callable[[], Any], stream: torch.cuda.Stream):
        self._graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(stream.device)
        try:
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self.outputs = function()
        except BaseException:
            _leave_capture(stream.device, current, pool)
            raise

    def replay(self) -> None:
        """Run what was captured again, on what its inputs hold now."""
        self._graph.replay()


def _leave_capture(device: torch.device, current: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """Bring stream, allocator and generator back to where they were before a capture that was invalidated.

    PyTorch ends such a capture with an exception before it has done so itself. Where there is nothing left to do, nothing is done: of a
    capture that has ended, the graph gives the pool back when it is freed, and to do that twice would end the process.
    """
    torch.cuda.set_stream(current)
    with contextlib.suppress(RuntimeError):  # where the allocator no longer allocates to the pool
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    generator = torch.cuda.default_generators[device.index]
    try:
        torch.rand((), device=device)
    except RuntimeError:  # it still counts offsets for the graph
        with contextlib.suppress(RuntimeError):
            generator.graphsafe_set_state(generator.clone_state())


def device_trouble(device: torch.device) -> str | None:
    """Return why nothing can go on after a failed capture, or None."""
    if device.type != "cuda":
        return None
    try:
        torch.rand((), device=device)
        torch.cuda.synchronize(device)
        return "its stream is still being captured" if torch.cuda.is_current_stream_capturing() else None
    except RuntimeError as error:
        return _first_line(error)


def memory_for_graph(device: torch.device, step: int, weights: int) -> str | None:
    """Return why memory does not suffice for a CUDA graph of a step, or None.

    A graph keeps the memory of a whole step to itself, next to that of steps that run as they are; before it takes their place, weights and
    the state of the optimizer are copied.

    Args:
        step: bytes that a step takes for a time.
        weights: bytes of all parameters.
    """
    needed, free = 2 * step + 7 * weights, free_memory(device)
    if needed <= free:
        return None
    return f"it needs about {needed >> 20} MB of memory and {free >> 20} MB are free"


def free_memory(device: torch.device) -> int:
    """Return the bytes of a CUDA device that PyTorch could still hand out."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def step_memory(trainer: Trainer, batch: Batch) -> int | None:
    """Return the bytes that a step takes for a time, or None where it does not fit."""
    device = trainer.run.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return torch.cuda.max_memory_allocated(device) - before if fits(trainer, batch) else None


class StepGraph:
    """Run a step, forward, backward and update, and capture it in a CUDA graph where the same kind of inputs comes again.

    A step of Point-M2AE is thousands of short kernels, which a host starts more slowly than a GPU runs them; a graph is
    started by one call. It reads and writes the same memory each time, so inputs are copied to where it reads them,
    learning rates are on the device, and seeds are given before each run (`torch.manual_seed`), which graphs follow.

    The first steps run as they are, on the stream that captures later; they are steps as any other. Inputs of another
    kind (shapes, types, or numbers that are no tensors) begin again. Before a graph takes the place of the step, both
    run once, from the same state. Where memory does not suffice, capturing fails, or the result differs, everything is as
    if no graph had been tried, and steps run as they are from then on.

    Args:
        optimizer: its learning rates and gradients are adapted to the graph.
        buffers: what a step changes besides parameters and the state of the optimizer.
        device: a CUDA device.
        warn: called once with why there is no graph; may raise.
        capture: (function, stream) -> `CapturedCall`.
        lacks_memory: returns why memory does not suffice now, or None.
        trouble: (device) -> why nothing can go on after a failed capture, or None.

    Raises:
        UserError: a failed capture has left the device unusable.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        buffers: Iterable[Tensor],
        device: torch.device,
        *,
        warn: Callable[[str], None],
        capture: Callable = CapturedCall,
        lacks_memory: Callable[[], str | None] = lambda: None,
        trouble: Callable[[torch.device], str | None] = device_trouble,
    ):
        self._optimizer, self._buffers, self._device = optimizer, list(buffers), device
        self._warn, self._capture, self._lacks_memory, self._trouble = warn, capture, lacks_memory, trouble
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._failed = False
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.forget()

    def forget(self) -> None:
        """Begin again, because something that a graph holds has changed."""
        self._kind, self._steps = None, 0
        self._graph = self._inputs = None

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
        self._steps += 1
        if self._graph is None and self._steps > WARM_UP and not self._failed:
            if reason := self._lacks_memory() or self._try_to_capture(function, inputs):
                self._give_up(reason)
            else:
                return self._compare(function, inputs, seed)
        seed()
        return self._run(function, inputs) if self._graph is None else self._replay(inputs)

    def _replay(self, inputs: Any) -> Any:
        _copy(inputs, self._inputs)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._graph.outputs

    def _give_up(self, reason: str) -> None:
        """Let steps run as they are from now on, in all of the memory."""
        self._failed = True
        self.forget()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._warn(reason)

    def _compare(self, function: Callable[[Any], Any], inputs: Any, seed: Callable[[], None]) -> Any:
        """Run the graph and then, from the same state, the step itself, which counts; forget a graph that differs or fails."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        state = [value for entry in self._optimizer.state.values() for value in entry.values()]
        changed = [*parameters, *self._buffers, *(value for value in state if isinstance(value, Tensor))]
        before: list[Tensor] = []
        reason, outputs = None, None
        try:
            before += [tensor.detach().clone() for tensor in changed]
            seed()
            replayed = map_tensors(torch.clone, self._replay(inputs))
            after = [p.detach().clone() for p in parameters]
            _restore(changed, before)
            seed()
            outputs = self._run(function, inputs)
            parameters = [p.detach() for p in parameters]
            apart, moved = _distance(after, parameters), _distance(before[: len(after)], parameters)
            if not (_close(replayed, outputs) and apart <= UPDATE * moved):
                self._give_up("a captured step differs from the step itself")
            return outputs
        except UserError:
            raise
        except Exception as error:
            reason = _first_line(error)
        # Here, where the exception no longer holds the memory of what failed.
        replayed = after = outputs = None
        _restore(changed, before)
        self._optimizer.zero_grad(set_to_none=True)
        self._give_up(reason)
        seed()
        return self._run(function, inputs)

    def _run(self, function: Callable[[Any], Any], inputs: Any) -> Any:
        """Run a step as it is, on the stream that captures: what autograd keeps between steps belongs to the stream of its making."""
        if self._stream is None:
            return function(inputs)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function(inputs)
        current.wait_stream(self._stream)
        return outputs

    def _try_to_capture(self, function: Callable[[Any], Any], inputs: Any) -> str | None:
        """Capture a step, or return why that failed; then nothing is different from before."""
        groups = self._optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", "capturable") if key in group} for group in groups]
        try:
            self._inputs = map_tensors(torch.clone, inputs)
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = True
            self._graph = self._capture(lambda: function(self._inputs), self._stream)
            return None
        except Exception as error:  # of PyTorch, CUDA, or a compiler that a step calls
            reason = _first_line(error)
        finally:
            for group, values in zip(groups, kept, strict=True):
                group.update(values)
            # Gradients are in memory of the graph, which needs nobody to hold them.
            self._optimizer.zero_grad(set_to_none=True)
        if trouble := self._trouble(self._device):
            raise UserError(
                f"--cuda_graph: capturing a step failed ({reason}) and left {self._device} unusable for this run ({trouble}); "
                "start again with --cuda_graph off, from the last checkpoint with --resume"
            )
        return reason


def _restore(changed: list[Tensor], before: list[Tensor]) -> None:
    """Give tensors the values they had; where not all were kept, nothing was changed yet."""
    if len(before) == len(changed):
        with torch.no_grad():
            for tensor, kept in zip(changed, before, strict=True):
                tensor.copy_(kept)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def open_graph(trainer: AcceleratedTrainer, batch: Batch) -> StepGraph | None:
    """Return the CUDA graph of a run's steps as `--cuda_graph` asks, or None where they run as they are.

    Args:
        batch: one like those of the run, to count the memory of a step.

    Raises:
        UserError: a graph is asked for and impossible.
    """
    run, state = trainer.run, trainer.state
    asked, reason = run.args.cuda_graph, why_no_graph(run, state.model, micro_batches=trainer.micro_batches)
    if asked == "on" and reason is not None:
        raise UserError(f"--cuda_graph on: steps cannot be captured, {reason}; change that, or use --cuda_graph auto")
    if asked == "off" or reason is not None or (asked == "auto" and not is_confirmed(GRAPH, run.device)):
        return None

    def warn(why: str) -> None:
        if asked == "on":
            raise UserError(
                f"--cuda_graph on: steps cannot be captured, {why}; use --cuda_graph off, or auto to go on without"
            )
        run.log.warning(f"--cuda_graph auto: steps run without a CUDA graph, as if none had been tried ({why})")

    step = step_memory(trainer, batch)
    if step is None:  # the loop says so, with what would fit
        return None
    lacks_memory = partial(memory_for_graph, run.device, step, sum(p.nbytes for p in state.model.parameters()))
    if why := lacks_memory():
        warn(why)
        return None
    return StepGraph(state.optimizer, state.model.buffers(), run.device, warn=warn, lacks_memory=lacks_memory)


def why_no_graph(run: RunContext, model: nn.Module, *, micro_batches: int) -> str | None:
    """Say why the steps of a run cannot be captured, or return None."""
    config = run.config
    reasons = {
        f"steps run on {run.device}": run.device.type != "cuda",
        "several processes average gradients while these are computed": world_size() > 1,
        f"step_per_update is {config.step_per_update}": config.step_per_update != 1,
        f"batches are cut into {micro_batches} micro-batches": micro_batches != 1,
        "fp16 scales its losses by what it finds": config.precision == "fp16",
    }
    return next((reason for reason, holds in reasons.items() if holds), data_dependent(model, run.device))


def _distance(some: list[Tensor], others: list[Tensor]) -> float:
    """Return the Euclidean distance of two lists of tensors."""
    return sum((a.double() - b.double()).square().sum() for a, b in zip(some, others, strict=True)).sqrt().item()


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value, in order."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def _close(replayed: Any, outputs: Any) -> bool:
    """Say whether two results agree up to rounding; numbers that are not finite agree with each other."""
    pairs = zip(_tensors(replayed), _tensors(outputs), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=LOSSES, atol=1e-6, equal_nan=True) for a, b in pairs)


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors of a value to those of another one of the same kind."""
    for own, to in zip(_tensors(source), _tensors(target), strict=True):
        to.copy_(own, non_blocking=True)


# The compiler.


def data_dependent(model: nn.Module, device: torch.device) -> str | None:
    """Return why the shapes of a model, or what it does, follow its data on a device, or None."""
    tuning = getattr(model, "tuning", None)
    own = getattr(model, "data_dependent", None) or getattr(tuning, "data_dependent", None)
    if own is None and isinstance(model, MaskedAutoencoder) and device.type == "cpu":
        return "on the CPU, shapes follow the mask"
    return own


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Compile a model in place: whole, where it trains on a GPU and nothing follows the data, else its regions.

    On the CPU regions it is: what lies between them has fused kernels, which a compiled model cannot use.
    """
    if device.type != "cpu" and data_dependent(model, device) is None:
        model.compile(dynamic=False, options=COMPILE_OPTIONS)
    else:
        compile_regions(model)


def compile_regions(model: nn.Module) -> None:
    """Compile each patch embedding and transformer block in place; keys of the state dict stay as they are.

    Packing stays eager: how many tokens are visible is known at run time only.
    """
    for module in model.modules():
        if isinstance(module, PatchEmbed | Block):
            module.compile(dynamic=True, options=COMPILE_OPTIONS)


def undo_compile(model: nn.Module) -> None:
    """Let a model run eagerly again."""
    for module in model.modules():
        module._compiled_call_impl = None


def is_whole(model: nn.Module) -> bool:
    """Return whether a model is compiled as a whole."""
    return model._compiled_call_impl is not None


def compile_failed(error: BaseException) -> bool:
    """Return whether an exception comes from the compiler, not from the model."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


# The dry run.


def dry_run(trainer: Trainer, batch: Batch) -> int:
    """Try what the flags make uncertain before anything is trained; returns into how many micro-batches batches are to be cut."""
    args, log = trainer.run.args, trainer.run.log
    if args.compile and (failure := _compile_what_can_be(trainer, batch)):
        log.warning(failure)
    if args.micro_batches != "auto":
        return args.micro_batches
    parts = fewest_micro_batches(trainer, batch)
    log.info(f"--micro_batches auto: batches of {len(batch.indices)} are cut into {parts} micro-batches")
    return parts


def try_step(trainer: Trainer, batch: Batch) -> None:
    """Run forward and backward on a batch, after which gradients and buffers are as before; whatever the step raises is passed on."""
    model = trainer.state.model
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        trainer.forward(batch, trainer.state.epoch + 1)["loss"].backward()
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def fits(trainer: Trainer, batch: Batch) -> bool:
    """Return whether memory suffices for a step on a batch."""
    try:
        try_step(trainer, batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    else:
        return True
    if batch.points.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def fewest_micro_batches(trainer: Trainer, batch: Batch) -> int:
    """Return into how many micro-batches a batch must be cut to fit into memory: a power of two, or one a cloud.

    Raises:
        UserError: a single cloud does not fit.
    """
    clouds = len(batch.indices)
    parts = 1
    while not fits(trainer, batch.split(parts)[0]):
        if parts >= clouds:
            raise UserError(
                f"memory of {batch.points.device} does not hold a step on a single cloud of {batch.points.shape[1]} points; "
                "use a smaller model, fewer points, or --precision bf16"
            )
        parts = min(2 * parts, clouds)
    return parts


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an exception says that memory, of the device or the host, is used up."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)


def too_large(trainer: Trainer, batch: Batch) -> UserError:
    """Return the message that a batch does not fit, and which one would."""
    clouds, parts = len(batch.indices), trainer.micro_batches
    what = f"a batch of {clouds} in {parts} micro-batches" if parts > 1 else f"a batch of {clouds}"
    what += f" does not fit into the memory of {trainer.run.device}"
    if world_size() > 1:  # to try smaller ones, all processes would have to
        return UserError(f"{what}; lower total_bs, or keep it with --micro_batches {2 * parts}")
    fewest = fewest_micro_batches(trainer, batch)
    largest = len(batch.split(fewest)[0].indices)
    return UserError(
        f"{what}; of those tried {largest} is the largest that does: set total_bs={largest}, or keep {clouds} with "
        f"--micro_batches {fewest} (batch norms then see {largest} clouds at a time)"
    )


def _compile_what_can_be(trainer: Trainer, batch: Batch) -> str | None:
    """Try a compiled model, of one that fails as a whole its regions, and say what failed, or return None."""
    model = trainer.state.model
    whole = is_whole(model)
    reason = _why_not_compiled(trainer, batch)
    if reason is None or not whole:
        return reason and f"--compile: failed, so the model runs without ({reason})"
    compile_regions(model)
    left = "only its regions are compiled" if _why_not_compiled(trainer, batch) is None else "it runs without"
    return f"--compile: failed for the whole model, so {left} ({reason})"


def _why_not_compiled(trainer: Trainer, batch: Batch) -> str | None:
    """Return why a compiled model fails, in one line, or None; a model that fails runs eagerly from then on."""
    try:
        try_step(trainer, batch)
    except RuntimeError as error:
        if not compile_failed(error):
            raise
        undo_compile(trainer.state.model)
        return str(error).strip().splitlines()[0]
    return None
