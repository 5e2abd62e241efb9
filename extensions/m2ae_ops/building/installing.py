"""Compile while the package is being installed, for `extensions/setup.py`, and check such a library at run time.

The folder of finished libraries holds stamp.json, which says for which PyTorch, from which sources and, on CUDA, for which
architectures they were made. A library that does not fit is left alone; the same sources are then compiled at first use.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import BuildError
from .compile import compile_half
from .recipe import recipe, sources_digest
from .toolchain import covers
from .torch_files import TorchFiles

STAMP = "stamp.json"
DURATION = {"cpu": "about 20 seconds on two cores", "cuda": "minutes"}


def compile_installed(csrc: Path, torch: TorchFiles, target: Path, objects: Path) -> Iterator[str]:
    """Compile the CPU half, and the CUDA half with $M2AE_CUDA=1, into the folder `target`; yield lines that say what is done.

    The CUDA half takes minutes and is of use only on machines with a GPU, so it has to be asked for.
    $TORCH_CUDA_ARCH_LIST chooses its architectures. A CPU half that cannot be compiled is left out.

    Raises:
        BuildError: M2AE_CUDA=1 and the CUDA half cannot be built.
    """
    wanted, halves = os.environ.get("M2AE_CUDA", ""), {}
    if wanted not in ("", "0", "1"):
        raise BuildError(f"M2AE_CUDA={wanted} is not 0 or 1")
    for name in ("cpu", "cuda") if wanted == "1" else ("cpu",):
        try:
            half = recipe(name, csrc, torch)
            what = f"{name.upper()} kernels for PyTorch {' '.join((torch.version, *half.architectures))}"
            yield f"compiling {what}, {DURATION[name]}"
            compile_half(half, target / half.library, objects)
        except (BuildError, OSError) as error:
            if name == "cuda":
                raise BuildError(f"M2AE_CUDA=1, but {error}{_output(target)}") from error
            yield f"without compiled CPU kernels: {error}{_output(target)}"
            continue
        facts = {"library": half.library, "architectures": half.architectures}
        halves[name] = facts | {"sources": sources_digest(csrc, name)}
        yield f"compiled {what}"
    if wanted != "1":
        yield "left out the CUDA kernels: on a GPU they are compiled at first use, with M2AE_CUDA=1 while installing"
    if halves:
        (target / STAMP).write_text(json.dumps({"torch": torch.version, "halves": halves}, indent=1) + "\n")
    (target / "build.log").unlink(missing_ok=True)


def find_finished(
    folder: Path, csrc: Path, name: str, torch_version: str, capabilities: Sequence[tuple[int, int]] = ()
) -> Path | None:
    """Return the finished library of a half if it fits this PyTorch, these sources and all these devices, else None."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        half = stamp["halves"][name]
        library = folder / half["library"]
        fits = stamp["torch"] == torch_version and half["sources"] == sources_digest(csrc, name) and library.is_file()
        return library if fits and all(covers(half["architectures"], one) for one in capabilities) else None
    except (OSError, ValueError, KeyError, TypeError):  # no such folder, or not written by `compile_installed`
        return None


def built_for(folder: Path) -> str | None:
    """Return the version of PyTorch that finished libraries were made for, or None where there are none."""
    try:
        return str(json.loads((folder / STAMP).read_text())["torch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _output(target: Path) -> str:
    """Return the end of the compiler's output, because the folder of an installation is removed after it."""
    log_file = target / "build.log"
    return f"\n{log_file.read_text(errors='replace')[-4000:]}" if log_file.exists() else ""
