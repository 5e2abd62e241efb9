"""The commands that compile and link a half of the library, and the keys under which their results are kept.

A key holds all that decides a result: the text of the source and of the headers that it includes, the flags, the
compilers, PyTorch's version and the processor family (home folders are shared between machines).
"""

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .compiler import Compiler, is_x86
from .cuda import CudaToolkit, code_flags, cuda_runtime
from .errors import BuildError
from .torch_files import TorchFiles

LIBRARY_NAMES = {"cpu": "libm2ae_ops.so", "cuda": "libm2ae_ops_cuda.so"}
# The squared distance must not be contracted to fused multiply-adds: see reference/distance.py.
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
CPU_FLAGS = ("-O3", "-std=c++17", *HOST_FLAGS)
CUDA_FLAGS = (
    "-O3",
    "-std=c++17",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-w",
    f"-Xcompiler={','.join(HOST_FLAGS)}",
)
ISA_FLAGS = {
    "isa_avx2.cpp": ("-mavx2", "-mfma", "-mbmi", "-mpopcnt"),
    "isa_avx512.cpp": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mbmi", "-mpopcnt"),
}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Object:
    """One source file: the command that compiles it, without input and output, and the name of the result."""

    source: Path
    command: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Half:
    """One half of the library: "cpu" or "cuda", what it is called, its objects, how they are linked, its key.

    `link` is (what stands before the objects, what stands after them).
    """

    name: str
    library: str
    objects: tuple[Object, ...]
    link: tuple[tuple[str, ...], tuple[str, ...]]
    key: str


def cpu_half(csrc: Path, torch: TorchFiles, compiler: Compiler) -> Half:
    """Return the recipe of the CPU half, csrc/cpu/*.cpp.

    Raises:
        BuildError: there are no sources.
    """
    openmp = ("-fopenmp",) if compiler.openmp else ()
    facts = (*_facts(torch, compiler), *openmp)
    includes = _options("-isystem", torch.includes)
    objects = []
    for source in _sources(csrc / "cpu", "*.cpp"):
        if source.name in ISA_FLAGS and not is_x86():
            continue
        flags = (*CPU_FLAGS, *ISA_FLAGS.get(source.name, ()), *openmp, _abi(torch))
        objects.append(Object(source, (compiler.command, *flags, *includes), _object_name(source, facts, flags)))
    before = (compiler.command, "-shared", *openmp)
    return _half("cpu", objects, before, (f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-lc10"))


def cuda_half(
    csrc: Path, torch: TorchFiles, compiler: Compiler, toolkit: CudaToolkit, architectures: Sequence[str]
) -> Half:
    """Return the recipe of the CUDA half, csrc/cuda/*.cu.

    PyTorch's headers want those of cuBLAS, cuSPARSE and more, which a small toolkit lacks; NVIDIA's wheels beside PyTorch
    have them. They are searched last, so that the toolkit's own headers fit its compiler.

    Raises:
        BuildError: there are no sources, or no CUDA runtime to link with.
    """
    facts = (*_facts(torch, compiler), toolkit.version)
    last = [f"-Xcompiler=-idirafter,{path / 'include'}" for path in torch.nvidia if (path / "include").is_dir()]
    includes = (*_options("-isystem", torch.includes), *last)
    flags = (*CUDA_FLAGS, *code_flags(architectures), _abi(torch))
    command = (toolkit.nvcc, "-ccbin", compiler.command, *flags, *includes)
    sources = _sources(csrc / "cuda", "*.cu")
    objects = [Object(source, command, _object_name(source, facts, flags)) for source in sources]
    libraries = ("-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10", str(cuda_runtime(torch, toolkit)))
    return _half("cuda", objects, (compiler.command, "-shared"), (f"-L{torch.folder / 'lib'}", *libraries))


def sources_digest(csrc: Path, name: str) -> str:
    """Return a digest of all source files of a half, to tell whether a finished library was made from them."""
    digest = hashlib.sha256()
    for path in sorted((csrc / name).glob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _half(name: str, objects: list[Object], before: tuple[str, ...], after: tuple[str, ...]) -> Half:
    # The options by which libraries are named, but not the folders in which they lie, belong to the key.
    named = [part for part in (*before[1:], *after) if part.startswith("-l") or part.startswith("-f")]
    digest = hashlib.sha256("\0".join([*(item.name for item in objects), *named]).encode())
    return Half(name, LIBRARY_NAMES[name], tuple(objects), (before, after), digest.hexdigest()[:16])


def _facts(torch: TorchFiles, compiler: Compiler) -> tuple[str, ...]:
    return torch.version, compiler.version, platform.machine()


def _abi(torch: TorchFiles) -> str:
    return f"-D_GLIBCXX_USE_CXX11_ABI={torch.cxx11_abi}"


def _options(flag: str, paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(part for path in paths for part in (flag, str(path)))


def _sources(folder: Path, pattern: str) -> list[Path]:
    sources = sorted(folder.glob(pattern))
    if not sources:
        raise BuildError(f"there are no sources ({pattern}) in {folder}; the package is incomplete")
    return sources


def _object_name(source: Path, facts: Sequence[str], flags: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join([*facts, *flags]).encode())
    for path in _with_headers(source):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return f"{source.stem}-{digest.hexdigest()[:16]}.o"


def _with_headers(source: Path) -> list[Path]:
    """Return the source and all headers of ours that it includes, directly or through others."""
    found, waiting = [], [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        names = INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace"))
        waiting += [(path.parent / name).resolve() for name in names]
    return sorted(found)
