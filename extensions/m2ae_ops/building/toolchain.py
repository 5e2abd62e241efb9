"""The C++ compiler, the CUDA toolkit, and the architectures to compile for.

An architecture is written as in TORCH_CUDA_ARCH_LIST: "9.0", "9.0a", or "9.0+PTX" for code of that architecture and intermediate code
that the driver compiles for later ones. What cannot be found or does not fit is a BuildError.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import BuildError
from .torch_files import TorchFiles

X86 = platform.machine().lower() in ("x86_64", "amd64")
# Turing, Ampere (data centre, consumer), Ada, Hopper, Blackwell (data centre, consumer); as far as nvcc knows them.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


class Compiler(NamedTuple):
    """A C++ compiler."""

    command: str
    version: str  # what it says about itself
    openmp: bool


class CudaToolkit(NamedTuple):
    """A CUDA toolkit."""

    nvcc: str
    home: Path
    version: str  # such as 13.0
    known: tuple[str, ...]  # architectures that it compiles for


def find_compiler() -> Compiler:
    """Return the compiler to use: $CXX, g++, clang++ or c++, in this order."""
    if sys.platform != "linux":
        raise BuildError(f"there is no build for {sys.platform} yet, only for Linux")
    wanted = os.environ.get("CXX")
    for path in filter(None, map(shutil.which, [wanted] if wanted else ["g++", "clang++", "c++"])):
        answer = subprocess.run([path, "--version"], capture_output=True, text=True)
        if answer.returncode == 0:
            return Compiler(path, answer.stdout.splitlines()[0], _has_openmp(path))
    raise BuildError(f"no C++ compiler found ({wanted or 'g++, clang++, c++'}); install one or set CXX")


def find_cuda(torch: TorchFiles) -> CudaToolkit:
    """Return the toolkit to build with: $CUDA_HOME and no other, nvcc on the PATH, in NVIDIA's wheels, in /usr/local/cuda."""
    if torch.cuda is None:
        raise BuildError(f"PyTorch {torch.version} was built without CUDA; install a wheel with CUDA")
    unfit = []
    for nvcc in _candidates(torch):
        toolkit = _inspect(nvcc)
        if toolkit.version.split(".")[0] == torch.cuda.split(".")[0]:
            return toolkit
        unfit.append(f"{nvcc} is CUDA {toolkit.version}")
    if not unfit:
        raise BuildError("nvcc not found; install the CUDA toolkit or set CUDA_HOME")
    has = f"{', '.join(unfit)} but PyTorch {torch.version} has CUDA {torch.cuda}"
    raise BuildError(f"{has}; set CUDA_HOME to a toolkit of the same major version")


def cuda_runtime(torch: TorchFiles, toolkit: CudaToolkit) -> Path:
    """Return the shared CUDA runtime to link with, PyTorch's own if it can be found."""
    name = f"libcudart.so.{torch.cuda.split('.')[0]}"
    for folder in (torch.folder / "lib", *(path / "lib" for path in torch.nvidia), toolkit.home / "lib64"):
        if matches := sorted(folder.glob(f"{name}*")):
            return matches[0]
    raise BuildError(f"{name} is neither next to PyTorch nor in {toolkit.home}")


def check_headers(torch: TorchFiles, toolkit: CudaToolkit) -> None:
    """Check that the headers of the CUDA runtime are here: packages of nvcc alone come without."""
    folders = (toolkit.home, *toolkit.home.glob("targets/*"), *torch.nvidia)
    if not any((folder / "include" / "cuda_runtime.h").is_file() for folder in folders):
        missing = f"{toolkit.nvcc} comes without headers: there is no cuda_runtime.h in {toolkit.home / 'include'}"
        raise BuildError(f"{missing}; install the whole CUDA toolkit or set CUDA_HOME")


def choose_architectures(toolkit: CudaToolkit, wanted: str, devices: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Return what to compile for: the list wanted, else $TORCH_CUDA_ARCH_LIST, else the devices at hand, else all usual ones."""
    if chosen := wanted or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return parse_architectures(chosen, toolkit)
    if devices:
        return architectures_for(devices, toolkit)
    names = [name for name in DEFAULT_ARCHITECTURES if name in toolkit.known]
    return *names, f"{names[-1]}+PTX"  # intermediate code of the newest serves later devices


def parse_architectures(text: str, toolkit: CudaToolkit) -> tuple[str, ...]:
    """Return the architectures of a list separated by spaces, commas or semicolons."""
    names = tuple(dict.fromkeys(re.split(r"[\s,;]+", text.strip(" \t,;"))))
    for name in names:
        match = ARCHITECTURE.fullmatch(name)
        if not match or f"{match[1]}.{match[2]}" not in toolkit.known:
            known = f"nvcc {toolkit.version}; it has {' '.join(toolkit.known)}, also with +PTX"
            raise BuildError(f"architecture {name!r} is unknown to {known}")
    return names


def architectures_for(capabilities: Sequence[tuple[int, int]], toolkit: CudaToolkit) -> tuple[str, ...]:
    """Return what to compile for the given devices, and nothing more."""
    chosen = []
    for capability in sorted(set(capabilities)):
        older = [name for name in toolkit.known if _parts(name)[0] <= capability]
        if not older:
            raise BuildError(f"nvcc {toolkit.version} no longer compiles for sm_{capability[0]}{capability[1]}")
        nearest = max(older, key=_parts)
        # Machine code runs on later devices of the same generation; across generations only intermediate code does.
        chosen.append(nearest if covers([nearest], capability) else f"{nearest}+PTX")
    return tuple(dict.fromkeys(chosen))


def covers(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Return whether code compiled for the architectures runs on a device."""
    return any(
        number <= capability and (ptx or (number[0] == capability[0] and (number == capability or not exact)))
        for number, exact, ptx in map(_parts, architectures)
    )


def code_flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's flags for the architectures."""
    flags = []
    for name in architectures:
        (major, minor), suffix, ptx = _parts(name)
        code = f"{major}{minor}{suffix}"
        flags += [f"-gencode=arch=compute_{code},code={kind}_{code}" for kind in ("sm", *(["compute"] if ptx else []))]
    return list(dict.fromkeys(flags))


def _has_openmp(compiler: str) -> bool:
    """Return whether a small OpenMP program links; Clang often comes without the library."""
    program = "#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n"
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-fopenmp", "-shared", "-fPIC", "-xc++", "-", "-o", str(Path(folder) / "probe.so")]
        return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def _candidates(torch: TorchFiles) -> list[str]:
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        nvcc = Path(home) / "bin" / "nvcc"
        if not nvcc.exists():
            raise BuildError(f"there is no {nvcc}; correct or unset CUDA_HOME")
        return [str(nvcc)]
    found = (shutil.which("nvcc"), *(folder / "bin" / "nvcc" for folder in (*torch.nvidia, Path("/usr/local/cuda"))))
    return [str(nvcc) for nvcc in found if nvcc and Path(nvcc).exists()]


def _inspect(nvcc: str) -> CudaToolkit:
    """Ask nvcc itself, for a script may stand in its place."""
    try:
        answers = [
            subprocess.run([nvcc, *options], capture_output=True, text=True, errors="replace")
            for options in (["--version"], ["--dryrun", "none.cu"], ["--list-gpu-code"])
        ]
    except OSError as error:
        raise BuildError(f"{nvcc} cannot be started: {error}") from error
    versions, dry, known = (answer.stdout + answer.stderr for answer in answers)
    version, top = re.search(r"release (\d+\.\d+)", versions), re.search(r"^#\$ TOP=(.+)$", dry, re.MULTILINE)
    codes = re.findall(r"sm_(\d+)(\d)\b", known)
    if not (version and top and codes):
        raise BuildError(f"{nvcc} does not work; try `{nvcc} --version`")
    return CudaToolkit(nvcc, Path(top[1]).resolve(), version[1], tuple(f"{major}.{minor}" for major, minor in codes))


def _parts(name: str) -> tuple[tuple[int, int], str, bool]:
    """Return the number of an architecture, its suffix, and whether intermediate code is wanted."""
    major, minor, suffix, ptx = ARCHITECTURE.fullmatch(name).groups()
    return (int(major), int(minor)), suffix, bool(ptx)
