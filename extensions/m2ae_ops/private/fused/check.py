"""Whether the kernels are to be used here: a setting, and at first use a comparison of each with its plain form.

`M2AE_FUSED=auto` (default) uses them for float16 and bfloat16; `on` for float32 as well, whose products they compute without tensor
cores; `off` never.
"""

import functools
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from ...reference import embedding as reference
from .limits import KERNEL_DTYPES, LARGEST_GROUP, has_triton

MODES = ("auto", "on", "off")
OLDEST_DEVICE = (8, 0)
"""Compute capability from which the kernels serve: on 7.5 they keep kilobytes a thread outside of its registers."""
TENSOR_MEMORY = (10, 12)
"""Compute capabilities, from and below, on which Triton 3.6 makes TF32 of float32 products of 128 rows, which it was asked not to."""
BOUNDS = {torch.float16: 5e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Largest relative difference (of norms; of winners the share) that is put down to rounding."""
GROUPS, TILE, FEW_PROGRAMS = 21, 512, 2
"""What the first use compares: groups, and members more, in so few programs that each takes several tiles of at most 128 slots."""
logger = logging.getLogger("m2ae_ops")


def fused_ready(
    device: torch.device, dtype: torch.dtype, widths: tuple[int, int, int, int], points: bool, k: int
) -> bool:
    """Return whether the kernels serve a mini-PointNet of these widths (A, W, C, D) with products in `dtype`.

    The first question for each such kind, device and k compiles the kernels and compares each of them with its plain form on a few
    groups, in programs of several tiles; numbers of groups and tiles are no part of what is compiled, so these are the kernels that
    training runs. Where that fails (also where a device has too little shared memory for groups so large), one warning says why and the
    answer stays False. While a CUDA graph is captured nothing can be compared: what was not asked before is answered with False, and
    asked again later. Devices before compute capability 8.0 have too few registers for these kernels; float32 in groups of more than
    64 is not exact on all devices (TENSOR_MEMORY).

    Raises:
        ValueError: M2AE_FUSED is not one of MODES.
        RuntimeError: a kernel has left the device unusable for this process.
    """
    if device.type != "cuda" or dtype not in KERNEL_DTYPES or not 1 <= k <= LARGEST_GROUP or not has_triton():
        return False
    setting = mode()
    if setting == "off" or (setting == "auto" and dtype == torch.float32):
        return False
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_DEVICE or rounds_to_tf32(capability[0], dtype, k):
        return False
    try:
        reason = _reason_against(device, dtype, widths, points, k)
    except _CapturingError:
        logger.warning(
            "the fused mini-PointNet was not compared before the capture of a graph, which gets the plain one"
        )
        return False
    return reason is None


# What `torch.compiler.assume_constant_result` does, which imports the compiler: a second that a start without it does not need.
fused_ready._dynamo_marked_constant = True


def rounds_to_tf32(major: int, dtype: torch.dtype, k: int) -> bool:
    """Return whether the compiled kernels would round float32 operands, by the major compute capability."""
    return dtype == torch.float32 and k > 64 and TENSOR_MEMORY[0] <= major < TENSOR_MEMORY[1]


def mode() -> str:
    """Return the setting; `M2AE_OPS=reference` is `off` too."""
    chosen = os.environ.get("M2AE_FUSED", "auto")
    if chosen not in MODES:
        raise ValueError(f"M2AE_FUSED={chosen} is not one of {', '.join(MODES)}")
    return "off" if os.environ.get("M2AE_OPS") == "reference" else chosen


class _CapturingError(Exception):
    """Nothing can be decided now; an exception is not kept in the cache."""


@functools.cache
def _reason_against(device, dtype, widths, points, k) -> str | None:
    if torch.cuda.is_current_stream_capturing():
        raise _CapturingError
    reason = None
    try:
        from . import launch  # here, since it imports Triton

        with torch.cuda.device(device), launch.programs(FEW_PROGRAMS):
            sizes = (GROUPS + TILE // k, k, *widths)
            found = differences(launch, reference, sizes, points=points, dtype=dtype, device=device)
        if wrong := {name: error for name, error in found.items() if not error <= BOUNDS[dtype]}:
            reason = "they differ from the plain form in " + ", ".join(f"{n} by {e:.1e}" for n, e in wrong.items())
    except Exception as error:  # whatever compiler, driver or device object to
        reason = f"{type(error).__name__}: {error}"
        _check_device(device, reason)
    if reason is not None:
        logger.warning(
            "using the plain mini-PointNet on %s (%s, widths %s, groups of %d), since its kernels do not work here: %s",
            device, dtype, widths, k, reason,
        )  # fmt: skip
    return reason


def _check_device(device: torch.device, reason: str) -> None:
    """Raise where no other form serves either: an illegal access stays with a process to its end.

    Raises:
        RuntimeError: the device answers with an error.
    """
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise RuntimeError(
            f"the fused mini-PointNet has left {device} unusable for this process ({reason}); start again with M2AE_FUSED=off"
        ) from error


@torch.no_grad()
def differences(
    ours: ModuleType,
    theirs: ModuleType,
    sizes: tuple[int, ...],
    *,
    points: bool,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int = 0,
) -> dict[str, float]:
    """Run each of the eight steps in both forms, on the same operands: relative differences of what they return, by name.

    Args:
        sizes: groups, members, and the widths A, W, C, D.
    """
    with torch.autocast(torch.device(device).type, enabled=False):
        operands = _draw(sizes, points, dtype, device, seed)
        found, expected = _run(ours, theirs, *operands), _run(theirs, theirs, *operands)
    errors = {}
    for name, results in expected.items():
        for place, (one, other) in enumerate(zip(found[name], results, strict=True)):
            if other is not None:
                errors[f"{name}[{place}]"] = _difference(one, other)
    return errors


def _difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return float((found != expected).double().mean())
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _draw(sizes, points, dtype, device, seed) -> tuple:
    groups, k, A, W, C, D = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, to=torch.float32):
        return torch.randn(*shape, generator=generator).to(device, to)

    source, lift = (draw(groups * k, 3), draw(A, 3)) if points else (draw(groups * k, A, to=dtype), None)
    weights = [draw(*shape, to=dtype) / shape[1] ** 0.5 for shape in ((W, A), (C, A), (D, C))]
    flows = [draw(groups, width, to=dtype) for width in (C, D, W)]
    return k, source, lift, draw(3, A), draw(5, C), weights, flows


def _run(steps, exact, k, source, lift, first, norm, weights, flows) -> dict[str, tuple]:
    """Run all steps of `steps`; what one step takes from another comes from `exact`."""
    (widen, from_hidden, last), (offsets, flow, to_pooled) = weights, flows
    short, five = norm[:3].contiguous(), torch.cat([first, first[:2]])
    joined = exact.join(source, lift, first, from_hidden, offsets, k, False)[0]
    won, pooled = exact.peak(joined, None, short, last, k)[1], exact.peak(source, lift, first, widen, k)[1]
    way_back = (flow, won, last, joined, norm)
    # Points get no gradient, so that only a stored layer has a norm to go back through.
    before = {} if lift is not None else {"back through the norm": (steps.norm_backward(source.flip(0), source, five),)}
    return before | {
        "moments": (steps.point_moments(source),) if lift is not None else steps.column_moments(source),
        "pooled": steps.peak(source, lift, first, widen, k),
        "joined": steps.join(source, lift, first, from_hidden, offsets, k, True),
        "joined without moments": steps.join(source, lift, first, from_hidden, offsets, k, False),
        "tokens": steps.peak(joined, None, short, last, k),
        "winners of tokens": (steps.winner_sums(flow, won, joined, None, short, k, True),),
        "winners of pooled": (steps.winner_sums(to_pooled, pooled, source, lift, first, k, False),),
        "back to the joined": steps.join_backward(*way_back, source, lift, first, k),
        "back to the members": steps.members_backward(
            *way_back, from_hidden, to_pooled, pooled, widen, source, lift, first, k
        ),
    }
