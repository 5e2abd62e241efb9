"""Load the compiled kernels of a device when they are first wanted, or settle for the reference with one line in the log."""

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch

from .building import BuildError
from .building.installing import built_for, find_finished
from .private.library import CSRC, build, present_devices

HOW_TO_BUILD = "build with `python -m extensions.m2ae_ops.build --{half} --verbose` (or `python -m m2ae_ops.build`)"
DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
MODES = ("auto", "reference")
FINISHED = Path(__file__).parent / "lib"
"""Libraries that were compiled while the package was installed; see building/installing.py."""
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
    mode = os.environ.get("M2AE_OPS", "auto")
    if mode not in MODES:
        raise ValueError(f"M2AE_OPS={mode} is not one of {', '.join(MODES)}")
    if mode == "reference":
        logger.info("using the PyTorch reference of all ops because M2AE_OPS=reference")
        return None, "M2AE_OPS=reference"
    try:
        path = _load_finished(half) or build(half)
    except (BuildError, OSError) as error:
        return _without(half, str(error), HOW_TO_BUILD.format(half=half))
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return _without(half, f"{path} does not load: {error}", _remedy(path))
    what = _instruction_set(path) if half == "cpu" else half
    logger.info("using compiled %s kernels (%s) from %s", half.upper(), what, path)
    return what, None


def _without(half: str, reason: str, remedy: str) -> tuple[None, str]:
    line = "using the PyTorch reference of all ops on %s, several times slower: %s; %s"
    logger.warning(line, half.upper(), reason, remedy)
    return None, reason


def _remedy(path: Path) -> str:
    """Say what helps against a library that was compiled and does not load."""
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        return "its file system is mounted noexec: set M2AE_CACHE to a folder on another one"
    return f"remove {path.parent} to compile it anew"


def _load_finished(half: str) -> Path | None:
    """Load the library that was installed with the package; return None when there is none that fits."""
    devices = present_devices() if half == "cuda" else ()
    path = find_finished(FINISHED, CSRC, half, torch.__version__, devices)
    if path is None:
        other = built_for(FINISHED)
        if other not in (None, torch.__version__):
            line = "the kernels that were installed are for PyTorch %s and not for this %s; kernels compiled at first use serve instead"
            logger.warning(line, other, torch.__version__)
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
