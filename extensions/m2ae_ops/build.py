"""Compile the kernels of this package into libraries, once per version of sources, PyTorch and compilers.

    python -m extensions.m2ae_ops.build [--cpu] [--cuda] [--arch 9.0 --arch 10.0+PTX] [--verbose]

There are two halves that know nothing of each other: the CPU kernels and the CUDA kernels. A half lies in the cache folder
($M2AE_CACHE, by default the user's), has no Python ABI and only adds kernels to ops that are declared in Python, so any
Python version may load it. Several processes may start at once: one builds, the others wait for it.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .building import BuildError
from .building.compile import compile_half
from .building.compiler import find_compiler
from .building.cuda import CudaToolkit, architectures_for, default_architectures, find_cuda, parse_architectures
from .building.recipe import Half, cpu_half, cuda_half
from .building.torch_files import torch_files

CSRC = Path(__file__).parent / "csrc"
HALVES = ("cpu", "cuda")
LOCK_TIMEOUT = 1800  # seconds to wait for another process that builds
DURATION = {"cpu": "some 20 seconds", "cuda": "a minute or two"}
logger = logging.getLogger("m2ae_ops")


def cache_folder() -> Path:
    """Return the folder of this project's caches: $M2AE_CACHE or the user's cache folder."""
    if chosen := os.environ.get("M2AE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2ae"


def build(name: str = "cpu", *, architectures: Sequence[str] = (), verbose: bool = False) -> Path:
    """Return the path of a half of the library, "cpu" or "cuda", compiling it first when it is not in the cache.

    Args:
        name: which half.
        architectures: of the CUDA half, such as "9.0" or "9.0+PTX"; by default $TORCH_CUDA_ARCH_LIST, else those of the
            devices at hand, else all usual ones.
        verbose: print the commands and the compilers' output.

    Raises:
        BuildError: no compiler, or the compiler failed.
    """
    from filelock import FileLock, Timeout  # comes with PyTorch

    half = _recipe(name, architectures)
    target = cache_folder() / f"ops-{name}-{half.key}" / half.library
    if target.exists():
        return target
    lock = target.parent / "build.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=LOCK_TIMEOUT):
            if not target.exists():
                where, how_long = target.parent, DURATION[name]
                logger.warning("compiling the %s kernels into %s (once, %s)", name.upper(), where, how_long)
                compile_half(half, target, cache_folder() / "ops-objects", verbose=verbose)
    except Timeout as error:
        raise BuildError(f"another process holds {lock} for over {LOCK_TIMEOUT} s") from error
    except OSError as error:
        raise BuildError(f"cannot write to the cache: {error}; set M2AE_CACHE to another folder") from error
    return target


def present_devices() -> list[tuple[int, int]]:
    """Return the compute capabilities of the CUDA devices at hand."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_capability(index) for index in range(count)]


def _recipe(name: str, architectures: Sequence[str]) -> Half:
    compiler, files = find_compiler(), torch_files(Path(torch.__file__).parent)
    if name == "cpu":
        return cpu_half(CSRC, files, compiler)
    toolkit = find_cuda(files)
    return cuda_half(CSRC, files, compiler, toolkit, _choose_architectures(architectures, toolkit))


def _choose_architectures(wanted: Sequence[str], toolkit: CudaToolkit) -> tuple[str, ...]:
    if chosen := " ".join(wanted) or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return parse_architectures(chosen, toolkit)
    present = present_devices()
    return architectures_for(present, toolkit) if present else default_architectures(toolkit)


def main() -> int:
    """Build ahead of the first use and print what is active; the exit status is 1 when a half was not built."""
    from .loader import backend

    parser = argparse.ArgumentParser(
        description="Compile the kernels of m2ae_ops and print what is active.",
        epilog="Without --cpu and --cuda: the CPU kernels, and the CUDA kernels where there is a CUDA device.",
    )
    parser.add_argument("--cpu", action="store_true", help="the CPU kernels")
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels; needs nvcc, but no GPU")
    parser.add_argument(
        "--arch", action="append", default=[], help="CUDA architecture, such as 9.0 or 9.0+PTX; repeatable"
    )
    parser.add_argument("--verbose", action="store_true", help="print compiler commands and output")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    wanted = [name for name in HALVES if getattr(arguments, name)]
    status = 0
    for name in wanted or (HALVES if present_devices() else HALVES[:1]):
        try:
            path = build(name, architectures=arguments.arch if name == "cuda" else (), verbose=arguments.verbose)
            print(f"{name}: {path}")
        except BuildError as error:
            print(f"{name}: not built: {error}", file=sys.stderr)
            status = 1
    print(f"active: {backend()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
