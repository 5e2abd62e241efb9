"""Compile the kernels of this package into libraries, once per version of sources, PyTorch and compilers.

    python -m extensions.m2ae_ops.build [--cpu] [--cuda] [--arch 9.0 --arch 10.0+PTX] [--verbose]

There are two halves that know nothing of each other: the CPU kernels and the CUDA kernels. A half lies in the cache folder
($M2AE_CACHE, by default the user's), has no Python ABI and only adds kernels to ops that are declared in Python, so any
Python version may load it. Several processes may start at once: one builds, the others wait for it.
"""

import argparse
import logging
import sys

from .building import BuildError
from .loader import backend
from .private.library import build, present_devices

HALVES = ("cpu", "cuda")


def main() -> int:
    """Build before the first use and print what is active; the exit status is 1 when a half was not built."""
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
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("m2ae_ops").setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    wanted = [name for name in HALVES if getattr(arguments, name)]
    status = 0
    for name in wanted or (HALVES if present_devices() else HALVES[:1]):
        try:
            path = build(name, architectures=arguments.arch if name == "cuda" else ())
            print(f"{name}: {path}")
        except BuildError as error:
            print(f"{name}: not built: {error}", file=sys.stderr)
            status = 1
    print(f"active: {backend()}")
    return status


if __name__ == "__main__":
    sys.exit(main())
