"""The process group, from the environment that `torchrun` sets; with one process everything here is free."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_COMMAND = "torchrun --nproc_per_node=N main.py --launcher pytorch ..."


def init(launcher: str = "none", device: torch.device | str = "cpu") -> None:
    """Join the process group of `--launcher pytorch`: nccl for CUDA devices, gloo otherwise; "none" is one process.

    Raises:
        UserError: the environment does not fit the launcher.
    """
    if launcher == "none":
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ:
            count = os.environ["WORLD_SIZE"]
            raise UserError(f"started {count} times by torchrun, but without --launcher pytorch; add it: {_COMMAND}")
        return
    lacking = [name for name in _VARIABLES if name not in os.environ]
    if lacking:
        raise UserError(f"--launcher {launcher}: {', '.join(lacking)} is not set; start with {_COMMAND}")
    if not dist.is_available():
        raise UserError(f"--launcher {launcher}: this build of torch has no torch.distributed; use --launcher none")
    dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo", init_method="env://")


def is_initialized() -> bool:
    """Return whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the index of this process, 0 without a group."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a group."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Say whether this process writes files and the log."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if is_initialized():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum over the processes as a new tensor without gradient; the input stays as it is."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    if is_initialized():
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


class _GatherRows(torch.autograd.Function):
    """Concatenate the rows of all processes; a row's gradient is the sum of what all processes made of it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows)
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return all_reduce_sum(grad)[ctx.count * rank() : ctx.count * (rank() + 1)]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (B, ...) of all processes, (processes * B, ...), in the order of ranks; differentiable.

    Every process must call it, with as many rows, and run backward through it.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows.contiguous())


def broadcast_object(value: Any, source: int = 0) -> Any:
    """Return the picklable object that process `source` holds."""
    if not is_initialized():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=source)
    return holder[0]


def cleanup() -> None:
    """Leave the process group, if any."""
    if is_initialized():
        dist.destroy_process_group()
