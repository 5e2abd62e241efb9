"""Compile while the package is being installed, for `extensions/setup.py`, and check such a library at run time.

stamp.json says for which PyTorch, from which sources and for which architectures finished libraries were made. One that does not
fit is left alone; the same sources are then compiled at first use.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import BuildError
from .compile import compile_half
from .recipe import DURATION, recipe, sources_digest
from .toolchain import covers
from .torch_files import TorchFiles

STAMP = "stamp.json"


def compile_installed(csrc: Path, torch: TorchFiles, target: Path, objects: Path) -> Iterator[str]:
    """Compile the CPU half, and the CUDA half with $M2AE_CUDA=1, into the folder `target`; yield lines that say what is done.

    $TORCH_CUDA_ARCH_LIST chooses the architectures. A CPU half that cannot be compiled is left out.

    Raises:
        BuildError: M2AE_CUDA=1 and the CUDA half cannot be built.
    """
    wanted, halves, log_file = os.environ.get("M2AE_CUDA", ""), {}, target / "build.log"
    if wanted not in ("", "0", "1"):
        raise BuildError(f"M2AE_CUDA={wanted} is not 0 or 1")
    for name in ("cpu", "cuda") if wanted == "1" else ("cpu",):
        try:
            half = recipe(name, csrc, torch)
            what = f"{name.upper()} kernels for PyTorch {' '.join((torch.version, *half.architectures))}"
            yield f"compiling {what}, {DURATION[name]}"
            compile_half(half, target / half.library, objects)
        except (BuildError, OSError) as error:
            # The folder of an installation is removed after it, and the log with it.
            output = f"\n{log_file.read_text(errors='replace')[-4000:]}" if log_file.exists() else ""
            if name == "cuda":
                raise BuildError(f"M2AE_CUDA=1, but {error}{output}") from error
            yield f"without compiled CPU kernels: {error}{output}"
            continue
        sources = sources_digest(csrc, name)
        halves[name] = {"library": half.library, "architectures": half.architectures, "sources": sources}
        yield f"compiled {what}"
    if wanted != "1":
        yield "left out the CUDA kernels: on a GPU they are compiled at first use, with M2AE_CUDA=1 while installing"
    if halves:
        (target / STAMP).write_text(json.dumps({"torch": torch.version, "halves": halves}, indent=1) + "\n")
    log_file.unlink(missing_ok=True)


def built_for(folder: Path) -> str | None:
    """Return the version of PyTorch that finished libraries were made for, or None where there are none."""
    return _stamp(folder).get("torch")


def find_finished(folder: Path, csrc: Path, name: str, torch: str, devices: Sequence[tuple[int, int]]) -> Path | None:
    """Return the finished library of a half if it fits this version of PyTorch, these sources and all these devices, else None."""
    stamp = _stamp(folder)
    half = stamp.get("halves", {}).get(name)
    if half is None or stamp.get("torch") != torch or half["sources"] != sources_digest(csrc, name):
        return None
    library, runs = folder / half["library"], all(covers(half["architectures"], device) for device in devices)
    return library if runs and library.is_file() else None


def _stamp(folder: Path) -> dict:
    try:
        return dict(json.loads((folder / STAMP).read_text()))
    except (OSError, TypeError, ValueError):  # no such folder, or a broken file
        return {}
