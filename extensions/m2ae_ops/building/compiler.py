"""The C++ compiler and ninja."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command, what it says about itself, and whether it has OpenMP."""

    command: str
    version: str
    openmp: bool


def find_compiler() -> Compiler:
    """Return the compiler to use: $CXX, g++, clang++ or c++, in this order.

    Raises:
        BuildError: the platform has no build here, or no compiler was found.
    """
    if sys.platform != "linux":
        raise BuildError(f"there is no build for {sys.platform} yet, only for Linux")
    wanted = os.environ.get("CXX")
    for command in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if path := shutil.which(command):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True)
            if answer.returncode == 0:
                return Compiler(path, answer.stdout.splitlines()[0], _has_openmp(path))
    raise BuildError(f"no C++ compiler found ({wanted or 'g++, clang++, c++'}); install one or set CXX")


def find_ninja() -> str | None:
    """Return the command of ninja, on the PATH or beside the interpreter, where pip puts it, or None."""
    beside = Path(sys.executable).parent
    return shutil.which("ninja") or shutil.which("ninja", path=str(beside))


def is_x86() -> bool:
    """Return whether this is a 64-bit x86 machine."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _has_openmp(compiler: str) -> bool:
    """Return whether a small OpenMP program links; Clang often comes without the library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        command = [compiler, "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(Path(folder) / "probe.so")]
        return subprocess.run(command, capture_output=True).returncode == 0
