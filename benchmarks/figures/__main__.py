"""`python -m benchmarks.figures [NAME ...] [--out DIR]`, or `make figures`: draw the pictures of README and documentation."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import FIGURES
from benchmarks.figures.canvas import write

SIDE = 170  # pixels of a cell


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the named pictures, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder (default: %(default)s)")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a cell (default: %(default)s)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such picture; choose from {', '.join(FIGURES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        began = time.perf_counter()
        path = args.out / f"{name}.png"
        size = write(path, FIGURES[name](args.side))
        print(f"{path}: {size / 1000:.0f} kB, {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
