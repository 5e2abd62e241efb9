"""Load the compiled library, building it when needed, or settle for the reference with one line in the log."""

import ctypes
import functools
import logging
import os

import torch

HOW_TO_BUILD = "build with `python -m extensions.m2ae_ops.build --verbose` (or `python -m m2ae_ops.build`)"
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
MODES = ("auto", "reference")
logger = logging.getLogger("m2ae_ops")


def has_kernel(qualified: str, device: torch.device) -> bool:
    """Return whether the op has a compiled kernel for the device, after trying to load the library.

    A build that is impossible or fails never raises; the reference serves instead.
    """
    key = DISPATCH_KEYS.get(device.type)
    if key is None or _library() is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)


def backend() -> str:
    """Return what serves the ops on the CPU: "compiled (<instruction set>)" or "reference (<reason>)"."""
    library = _library()
    return f"reference ({_reason()})" if library is None else f"compiled ({library})"


@functools.cache
def _load() -> tuple[str | None, str | None]:
    """Return (instruction set, None) with the library loaded, or (None, reason); one log line either way."""
    from .build import BuildError, build  # here, so that `python -m ...build` finds the module not yet imported

    mode = os.environ.get("M2AE_OPS", "auto")
    if mode not in MODES:
        raise ValueError(f"M2AE_OPS={mode} is not one of {', '.join(MODES)}")
    if mode == "reference":
        logger.info("using the PyTorch reference of all ops because M2AE_OPS=reference")
        return None, "M2AE_OPS=reference"
    try:
        path = build()
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        logger.warning("using the PyTorch reference of all ops, several times slower: %s; %s", error, HOW_TO_BUILD)
        return None, str(error)
    name = ctypes.CDLL(str(path)).m2ae_active_isa
    name.restype = ctypes.c_char_p
    isa = name().decode()
    logger.info("using compiled CPU kernels (%s) from %s", isa, path)
    return isa, None


def _library() -> str | None:
    return _load()[0]


def _reason() -> str | None:
    return _load()[1]
