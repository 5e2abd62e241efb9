"""Does a step run here at all? Tried once on a batch, and everything taken back: too large a batch, a model that does not compile."""

from collections.abc import Callable

import torch
from torch import nn

from datasets.batches import Batch
from tools.compile import compile_failed, compile_regions, is_whole, undo_compile
from tools.context import RunContext
from tools.engine import autocast
from utils.dist import world_size
from utils.errors import UserError

# What the CPU allocator says; CUDA has an exception of its own.
CPU_ALLOCATOR = "can't allocate memory"


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an exception says that memory, of the device or the host, is used up."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_ALLOCATOR in str(error)


class Rehearsal:
    """A step that can be tried: forward and backward on a batch, after which gradients and buffers are as before.

    Args:
        step: maps a batch to a dict of scalars with "loss".
    """

    def __init__(self, run: RunContext, model: nn.Module, step: Callable):
        self.context, self.model, self.step = run, model, step

    def play(self, batch: Batch) -> None:
        """Try a batch; whatever the step raises is passed on."""
        gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            with autocast(batch.points.device, self.context.config.precision):
                loss = self.step(batch)["loss"]
            loss.backward()
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def fits(self, batch: Batch) -> bool:
        """Return whether memory suffices for a batch."""
        try:
            self.play(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            fits = False
        else:
            fits = True
        if not fits and batch.points.device.type == "cuda":
            torch.cuda.empty_cache()
        return fits

    def compiles(self, batch: Batch) -> str | None:
        """Return why a compiled model fails, in one line, or None; a model that fails runs eagerly from then on."""
        try:
            self.play(batch)
        except RuntimeError as error:
            if not compile_failed(error):
                raise
            undo_compile(self.model)
            return str(error).strip().splitlines()[0]
        return None


def fewest_pieces(rehearsal: Rehearsal, batch: Batch) -> int:
    """Return into how many pieces a batch must be cut to fit into memory: a power of two, or one a cloud.

    Raises:
        UserError: a single cloud does not fit.
    """
    clouds = len(batch.indices)
    pieces = 1
    while not rehearsal.fits(batch.split(pieces)[0]):
        if pieces >= clouds:
            raise UserError(
                f"memory of {batch.points.device} does not hold a step on a single cloud of {batch.points.shape[1]} points; "
                "use a smaller model, fewer points, or --precision bf16"
            )
        pieces = min(2 * pieces, clouds)
    return pieces


def rehearse(rehearsal: Rehearsal, batch: Batch) -> int:
    """Try what the flags make uncertain before anything is trained; returns into how many pieces batches are to be cut."""
    args, log = rehearsal.context.args, rehearsal.context.log
    if args.compile and (failure := _compile_what_can_be(rehearsal, batch)):
        log.warning(failure)
    if args.micro_batches != "auto":
        return args.micro_batches
    pieces = fewest_pieces(rehearsal, batch)
    log.info(f"--micro_batches auto: batches of {len(batch.indices)} go through the model in {pieces} pieces")
    return pieces


def _compile_what_can_be(rehearsal: Rehearsal, batch: Batch) -> str | None:
    """Try a compiled model, of one that fails as a whole its regions, and say what failed, or return None."""
    whole = is_whole(rehearsal.model)
    reason = rehearsal.compiles(batch)
    if reason is None or not whole:
        return reason and f"--compile: failed, so the model runs without ({reason})"
    compile_regions(rehearsal.model)
    left = "only its regions are compiled" if rehearsal.compiles(batch) is None else "it runs without"
    return f"--compile: failed for the whole model, so {left} ({reason})"


def too_large(rehearsal: Rehearsal, batch: Batch, pieces: int) -> UserError:
    """Return the message that a batch, cut into `pieces` pieces, does not fit, and which one would."""
    clouds = len(batch.indices)
    what = f"a batch of {clouds} in {pieces} pieces" if pieces > 1 else f"a batch of {clouds}"
    what += f" does not fit into the memory of {rehearsal.context.device}"
    if world_size() > 1:  # to try smaller ones, all processes would have to
        return UserError(f"{what}; lower total_bs, or keep it with --micro_batches {2 * pieces}")
    fewest = fewest_pieces(rehearsal, batch)
    largest = len(batch.split(fewest)[0].indices)
    return UserError(
        f"{what}; of those tried {largest} is the largest that does: set total_bs={largest}, or keep {clouds} with "
        f"--micro_batches {fewest} (batch norms then see {largest} clouds at a time)"
    )
