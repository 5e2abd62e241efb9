"""Load the compiled kernels of a device when they are first wanted, or settle for the reference with one line in the log."""

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch

HOW_TO_BUILD = "build with `python -m extensions.m2ae_ops.build --{half} --verbose` (or `python -m m2ae_ops.build`)"
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
MODES = ("auto", "reference")
FINISHED = Path(__file__).parent / "lib"
"""Libraries that were compiled while the package was installed; see building/ahead.py."""
logger = logging.getLogger("m2ae_ops")


def has_kernel(qualified: str, device: torch.device) -> bool:
    """Return whether the op has a compiled kernel for the device, after trying to load the half for such devices.

    A build that is impossible or fails never raises; the reference serves instead.
    """
    key = DISPATCH_KEYS.get(device.type)
    if key is None or _load(device.type)[0] is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key)


def backend(device: str = "cpu") -> str:
    """Return what serves the ops on "cpu" or "cuda": "compiled (<instruction set or cuda>)" or "reference (<reason>)".

    Raises:
        ValueError: another device.
    """
    if device not in DISPATCH_KEYS:
        raise ValueError(f"backend: device={device!r} is not one of {', '.join(DISPATCH_KEYS)}")
    library, reason = _load(device)
    return f"reference ({reason})" if library is None else f"compiled ({library})"


@functools.cache
def _load(half: str) -> tuple[str | None, str | None]:
    """Return (what was loaded, None), or (None, reason) without the half; one log line either way."""
    from .build import BuildError, build  # here, so that `python -m ...build` finds the module not yet imported

    mode = os.environ.get("M2AE_OPS", "auto")
    if mode not in MODES:
        raise ValueError(f"M2AE_OPS={mode} is not one of {', '.join(MODES)}")
    if mode == "reference":
        logger.info("using the PyTorch reference of all ops because M2AE_OPS=reference")
        return None, "M2AE_OPS=reference"
    try:
        path = _load_finished(half)
        if path is None:
            path = build(half)
            torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        on, how = half.upper(), HOW_TO_BUILD.format(half=half)
        logger.warning("using the PyTorch reference of all ops on %s, several times slower: %s; %s", on, error, how)
        return None, str(error)
    what = _instruction_set(path) if half == "cpu" else half
    logger.info("using compiled %s kernels (%s) from %s", half.upper(), what, path)
    return what, None


def _load_finished(half: str) -> Path | None:
    """Load the library that was installed with the package; return None when there is none that fits."""
    from .build import CSRC, present_devices
    from .building.ahead import find_finished

    devices = present_devices() if half == "cuda" else ()
    path = find_finished(FINISHED, CSRC, half, torch.__version__, devices)
    if path is None:
        return None
    try:
        torch.ops.load_library(path)
    except OSError as error:
        logger.info("the installed %s does not load (%s); compiling it anew", path.name, error)
        return None
    return path


def _instruction_set(library: Path) -> str:
    name = ctypes.CDLL(str(library)).m2ae_active_isa
    name.restype = ctypes.c_char_p
    return name().decode()
