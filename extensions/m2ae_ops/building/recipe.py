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

from . import BuildError
from .toolchain import (
    Compiler,
    CudaToolkit,
    check_headers,
    choose_architectures,
    code_flags,
    cuda_runtime,
    find_compiler,
    find_cuda,
    is_x86,
)
from .torch_files import TorchFiles

LIBRARY_NAMES = {"cpu": "libm2ae_ops.so", "cuda": "libm2ae_ops_cuda.so"}
# The squared distance must not be contracted to fused multiply-adds: see reference/distance.py.
HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
CPU_FLAGS = ("-O3", *HOST_FLAGS)
FOR_HOST = f"-Xcompiler={','.join(HOST_FLAGS)}"
CUDA_FLAGS = ("-O3", "--fmad=false", "--expt-relaxed-constexpr", "-w", FOR_HOST)
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

    `link` is (what stands before the objects, what stands after them); architectures are those of the CUDA half.
    """

    name: str
    library: str
    objects: tuple[Object, ...]
    link: tuple[tuple[str, ...], tuple[str, ...]]
    key: str
    architectures: tuple[str, ...] = ()


def recipe(name: str, csrc: Path, torch: TorchFiles, wanted: str = "", devices: Sequence[tuple[int, int]] = ()) -> Half:
    """Return the recipe of a half by the compilers of this machine; architectures as in `choose_architectures`."""
    compiler = find_compiler()
    if name == "cpu":
        return cpu_half(csrc, torch, compiler)
    toolkit = find_cuda(torch)
    return cuda_half(csrc, torch, compiler, toolkit, choose_architectures(toolkit, wanted, devices))


def cpu_half(csrc: Path, torch: TorchFiles, compiler: Compiler) -> Half:
    """Return the recipe of the CPU half, csrc/cpu/*.cpp."""
    openmp = ("-fopenmp",) if compiler.openmp else ()
    sources = [source for source in _sources(csrc / "cpu", "*.cpp") if is_x86() or source.name not in ISA_FLAGS]
    flags = [(*CPU_FLAGS, *ISA_FLAGS.get(source.name, ()), *openmp) for source in sources]
    facts, tool = (compiler.version, platform.machine(), *openmp), (compiler.command,)
    objects = [_object(source, tool, own, torch, facts) for source, own in zip(sources, flags, strict=True)]
    return _half("cpu", objects, (compiler.command, "-shared", *openmp), torch, ("-ltorch_cpu", "-lc10"))


def cuda_half(
    csrc: Path, torch: TorchFiles, compiler: Compiler, toolkit: CudaToolkit, architectures: Sequence[str]
) -> Half:
    """Return the recipe of the CUDA half, csrc/cuda/*.cu.

    PyTorch's headers want those of cuBLAS, cuSPARSE and more, which a small toolkit lacks; NVIDIA's wheels next to PyTorch
    have them. They are searched last, so that the toolkit's own headers fit its compiler.
    """
    check_headers(torch, toolkit)
    last = [f"-Xcompiler=-idirafter,{path / 'include'}" for path in torch.nvidia if (path / "include").is_dir()]
    flags, tool = (*CUDA_FLAGS, *code_flags(architectures)), (toolkit.nvcc, "-ccbin", compiler.command)
    facts, sources = (compiler.version, platform.machine(), toolkit.version), _sources(csrc / "cuda", "*.cu")
    objects = [_object(source, tool, flags, torch, facts, last) for source in sources]
    libraries = ("-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10", str(cuda_runtime(torch, toolkit)))
    return _half("cuda", objects, (compiler.command, "-shared"), torch, libraries, tuple(architectures))


def sources_digest(csrc: Path, name: str) -> str:
    """Return a digest of all source files of a half, to tell whether a finished library was made from them."""
    digest = hashlib.sha256()
    for path in sorted((csrc / name).glob("*")):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _half(name: str, objects: list[Object], before, torch: TorchFiles, libraries, architectures=()) -> Half:
    # The options by which libraries are named, but not the folders in which they lie, belong to the key.
    named = [part for part in (*before[1:], *libraries) if part.startswith(("-l", "-f"))]
    digest = hashlib.sha256("\0".join([*(item.name for item in objects), *named]).encode())
    link = (before, (f"-L{torch.folder / 'lib'}", *libraries))
    return Half(name, LIBRARY_NAMES[name], tuple(objects), link, digest.hexdigest()[:16], architectures)


def _sources(folder: Path, pattern: str) -> list[Path]:
    sources = sorted(folder.glob(pattern))
    if not sources:
        raise BuildError(f"there are no sources ({pattern}) in {folder}; the package is incomplete")
    return sources


def _object(source: Path, tool: Sequence[str], flags: Sequence[str], torch: TorchFiles, facts, last=()) -> Object:
    flags = (*flags[:1], f"-std=c++{torch.standard}", *flags[1:], f"-D_GLIBCXX_USE_CXX11_ABI={torch.cxx11_abi}")
    digest = hashlib.sha256("\0".join([torch.version, *facts, *flags]).encode())
    for path in _with_headers(source):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    includes = [part for path in torch.includes for part in ("-isystem", str(path))]
    return Object(source, (*tool, *flags, *includes, *last), f"{source.stem}-{digest.hexdigest()[:16]}.o")


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
