"""The CUDA toolkit, and the architectures to compile for.

An architecture is written as in TORCH_CUDA_ARCH_LIST: "9.0", "9.0a", or "9.0+PTX" for code of that architecture and
intermediate code that the driver compiles for later ones.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .torch_files import TorchFiles

DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""Turing, Ampere (data centre, consumer), Ada, Hopper, Blackwell (data centre, consumer); as far as nvcc knows them."""
ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)(\+PTX)?")


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit: nvcc, its folder, its version ("13.0") and the architectures that it compiles for."""

    nvcc: str
    home: Path
    version: str
    known: tuple[str, ...]


def find_cuda(torch: TorchFiles) -> CudaToolkit:
    """Return the toolkit to build with: $CUDA_HOME and no other, nvcc on the PATH, in NVIDIA's wheels, in /usr/local/cuda.

    Raises:
        BuildError: PyTorch has no CUDA, there is no nvcc, or none of PyTorch's major version.
    """
    if torch.cuda is None:
        raise BuildError(f"PyTorch {torch.version} was built without CUDA; install a wheel with CUDA")
    unfit = []
    for nvcc in _candidates(torch):
        toolkit = _inspect(nvcc)
        if toolkit.version.split(".")[0] == torch.cuda.split(".")[0]:
            return toolkit
        unfit.append(f"{nvcc} is CUDA {toolkit.version}")
    if unfit:
        raise BuildError(
            f"{', '.join(unfit)} but PyTorch {torch.version} has CUDA {torch.cuda}; "
            "set CUDA_HOME to a toolkit of the same major version"
        )
    raise BuildError("nvcc not found; install the CUDA toolkit or set CUDA_HOME")


def cuda_runtime(torch: TorchFiles, toolkit: CudaToolkit) -> Path:
    """Return the shared CUDA runtime to link with, PyTorch's own if it can be found.

    Raises:
        BuildError: there is none.
    """
    name = f"libcudart.so.{torch.cuda.split('.')[0]}"
    folders = [torch.folder / "lib", *(path / "lib" for path in torch.nvidia), toolkit.home / "lib64"]
    for folder in folders:
        if matches := sorted(folder.glob(f"{name}*")):
            return matches[0]
    raise BuildError(f"{name} was found neither beside PyTorch nor in {toolkit.home}")


def parse_architectures(text: str, toolkit: CudaToolkit) -> tuple[str, ...]:
    """Return the architectures of a list as in TORCH_CUDA_ARCH_LIST, separated by spaces, commas or semicolons.

    Raises:
        BuildError: the list is empty, or an entry is malformed or unknown to nvcc.
    """
    names = tuple(dict.fromkeys(re.split(r"[\s,;]+", text.strip(" \t,;"))))
    for name in names:
        match = ARCHITECTURE.fullmatch(name)
        if not match or f"{match[1]}.{match[2]}" not in toolkit.known:
            known = " ".join(toolkit.known)
            raise BuildError(
                f"architecture {name!r} is unknown to nvcc {toolkit.version}; it has {known}, also with +PTX"
            )
    return names


def default_architectures(toolkit: CudaToolkit) -> tuple[str, ...]:
    """Return all architectures of a build for other machines; intermediate code of the newest one serves later ones."""
    *others, newest = (name for name in DEFAULT_ARCHITECTURES if name in toolkit.known)
    return *others, newest, f"{newest}+PTX"


def architectures_for(capabilities: Sequence[tuple[int, int]], toolkit: CudaToolkit) -> tuple[str, ...]:
    """Return what to compile for the given devices, and nothing more.

    Raises:
        BuildError: nvcc can compile nothing that runs on one of them.
    """
    chosen = []
    for capability in sorted(set(capabilities)):
        older = [name for name in toolkit.known if _number(name) <= capability]
        if not older:
            raise BuildError(f"nvcc {toolkit.version} no longer compiles for sm_{capability[0]}{capability[1]}")
        nearest = max(older, key=_number)
        # Machine code runs on later devices of the same generation; across generations only intermediate code does.
        chosen.append(nearest if _number(nearest)[0] == capability[0] else f"{nearest}+PTX")
    return tuple(dict.fromkeys(chosen))


def covers(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Return whether code compiled for the architectures runs on a device."""
    for name in architectures:
        match = ARCHITECTURE.fullmatch(name)
        number = _number(name)
        if match[4] and number <= capability:
            return True
        if number[0] == capability[0] and (number == capability if match[3] else number <= capability):
            return True
    return False


def code_flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's flags for the architectures."""
    flags = []
    for name in architectures:
        major, minor, suffix, ptx = ARCHITECTURE.fullmatch(name).groups()
        code = f"{major}{minor}{suffix}"
        flags.append(f"-gencode=arch=compute_{code},code=sm_{code}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{code},code=compute_{code}")
    return list(dict.fromkeys(flags))


def _candidates(torch: TorchFiles) -> Iterator[str]:
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        nvcc = Path(home) / "bin" / "nvcc"
        if not nvcc.exists():
            raise BuildError(f"there is no {nvcc}; correct or unset CUDA_HOME")
        yield str(nvcc)
        return
    if nvcc := shutil.which("nvcc"):
        yield nvcc
    for folder in [*torch.nvidia, Path("/usr/local/cuda")]:
        if (folder / "bin" / "nvcc").exists():
            yield str(folder / "bin" / "nvcc")


def _inspect(nvcc: str) -> CudaToolkit:
    """Ask nvcc itself, for a script may stand in its place."""
    version = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    top = re.search(r"^#\$ TOP=(.+)$", _output(nvcc, "--dryrun", "none.cu"), re.MULTILINE)
    codes = re.findall(r"sm_(\d+)(\d)\b", _output(nvcc, "--list-gpu-code"))
    if not (version and top and codes):
        raise BuildError(f"{nvcc} does not work; try `{nvcc} --version`")
    return CudaToolkit(nvcc, Path(top[1]).resolve(), version[1], tuple(f"{major}.{minor}" for major, minor in codes))


def _output(*command: str) -> str:
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error}") from error
    return answer.stdout


def _number(name: str) -> tuple[int, int]:
    major, minor, *_ = ARCHITECTURE.fullmatch(name).groups()
    return int(major), int(minor)
