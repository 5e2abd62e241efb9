"""The commands that compile and link a half of the library, and the keys under which their results are kept.

A key holds all that decides a result: the text of the source and of all headers next to it, the flags, the versions of the compilers and
of PyTorch, and the processor family (home folders are shared between machines). It holds no path.
"""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import BuildError, toolchain
from .toolchain import Compiler, CudaToolkit
from .torch_files import TorchFiles

NAMES = {"cpu": "libm2ae_ops.so", "cuda": "libm2ae_ops_cuda.so"}
DURATION = {"cpu": "some 20 seconds on two cores", "cuda": "a minute or two"}
# The squared distance must not be contracted to fused multiply-adds: see reference/distance.py.
CPU_FLAGS = ("-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
CUDA_FLAGS = ("--fmad=false", "--expt-relaxed-constexpr", "-w", f"-Xcompiler={','.join(CPU_FLAGS)}")
ISA_FLAGS = {
    "isa_avx2.cpp": ("-mavx2", "-mfma", "-mbmi", "-mpopcnt"),
    "isa_avx512.cpp": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mbmi", "-mpopcnt"),
}


class Half(NamedTuple):
    """One half of the library: the name of its file, the commands that make it, its key."""

    library: str
    objects: Mapping[str, Sequence[str]]  # the command of each object by the name of its file
    link: tuple[Sequence[str], Sequence[str]]  # what stands before the objects, and what stands after them
    key: str
    architectures: tuple[str, ...] = ()  # of the CUDA half


def recipe(name: str, csrc: Path, torch: TorchFiles, wanted: str = "", devices: Sequence[tuple[int, int]] = ()) -> Half:
    """Return the recipe of "cpu" or "cuda" by the compilers of this machine; architectures as in `choose_architectures`."""
    compiler = toolchain.find_compiler()
    if name == "cpu":
        return cpu_half(csrc, torch, compiler)
    toolkit = toolchain.find_cuda(torch)
    return cuda_half(csrc, torch, compiler, toolkit, toolchain.choose_architectures(toolkit, wanted, devices))


def cpu_half(csrc: Path, torch: TorchFiles, compiler: Compiler) -> Half:
    """Return the recipe of the CPU half, csrc/cpu/*.cpp."""
    openmp, flags = ("-fopenmp",) if compiler.openmp else (), ("-O3", f"-std=c++{torch.standard}", *CPU_FLAGS)
    commands = {
        source: (compiler.command, *flags, *ISA_FLAGS.get(source.name, ()), *openmp)
        for source in sorted((csrc / "cpu").glob("*.cpp"))
        if toolchain.X86 or source.name not in ISA_FLAGS
    }
    link = (compiler.command, "-shared", *openmp), ("-ltorch_cpu", "-lc10")
    return _half("cpu", commands, link, torch, (compiler.version,))


def cuda_half(csrc: Path, torch: TorchFiles, compiler: Compiler, toolkit: CudaToolkit, architectures: tuple) -> Half:
    """Return the recipe of the CUDA half, csrc/cuda/*.cu.

    PyTorch's headers include cuBLAS and more, which NVIDIA's wheels have; they are searched last: the toolkit's own fit its compiler.
    """
    toolchain.check_headers(torch, toolkit)
    last = [f"-Xcompiler=-idirafter,{path / 'include'}" for path in torch.nvidia if (path / "include").is_dir()]
    flags = ("-O3", f"-std=c++{torch.standard}", *CUDA_FLAGS, *toolchain.code_flags(architectures), *last)
    libraries = ("-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10", str(toolchain.cuda_runtime(torch, toolkit)))
    commands = dict.fromkeys(sorted((csrc / "cuda").glob("*.cu")), (toolkit.nvcc, "-ccbin", compiler.command, *flags))
    link = (compiler.command, "-shared"), libraries
    return _half("cuda", commands, link, torch, (compiler.version, toolkit.version), architectures)


def sources_digest(csrc: Path, name: str) -> str:
    """Return a digest of all source files of a half, to tell whether a finished library was made from them."""
    return _digest((), (csrc / name).glob("*"))


def _half(name: str, commands: Mapping, link: tuple, torch: TorchFiles, versions: tuple, architectures=()) -> Half:
    """Return a half by the command of each source, without input and what belongs to PyTorch, and how it is linked."""
    if not commands:
        raise BuildError(f"the sources of the {name} kernels are missing; install the package again")
    facts = (torch.version, *versions, platform.machine())
    includes = [part for path in torch.includes for part in ("-isystem", str(path))]
    own = (f"-D_GLIBCXX_USE_CXX11_ABI={torch.cxx11_abi}", *includes)
    objects = {}
    for source, command in commands.items():
        files = (source, *source.parent.glob("*.h"), *source.parent.glob("*.cuh"))
        key = _digest(facts, files, (*command, *own))
        objects[f"{source.stem}-{key}.o"] = (*command, *own, "-c", str(source.resolve()))
    before, libraries = link
    key = _digest(objects, command=(*before, *libraries))
    return Half(NAMES[name], objects, (before, (f"-L{torch.folder / 'lib'}", *libraries)), key, architectures)


def _digest(facts: Iterable[str], files: Iterable[Path] = (), command: Iterable[str] = ()) -> str:
    parts = [part for part in command if "/" not in part]  # without paths
    digest = hashlib.sha256("\0".join([*facts, *parts]).encode())
    for path in sorted(path for path in files if path.is_file()):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
