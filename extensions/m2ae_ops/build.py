"""Compile the kernels of this package into a library, once per version of sources, PyTorch and compiler.

    python -m extensions.m2ae_ops.build [--verbose]

The library lies in the cache folder ($M2AE_CACHE, by default the user's), has no Python ABI and only adds kernels to
ops that are declared in Python, so any Python version may load it. Several processes may start at once: one builds,
the others wait for it.
"""

import argparse
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc" / "cpu"
LIBRARY_NAME = "libm2ae_ops.so"
LOCK_TIMEOUT = 900  # seconds to wait for another process that builds
# The squared distance must not be contracted to fused multiply-adds: see reference/distance.py.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w")
ISA_FLAGS = {
    "isa_avx2.cpp": ("-mavx2", "-mbmi", "-mpopcnt"),
    "isa_avx512.cpp": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mbmi", "-mpopcnt"),
}
logger = logging.getLogger("m2ae_ops")


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and where the compiler's output is."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command, what it says about itself, and whether it has OpenMP."""

    command: str
    version: str
    openmp: bool


def cache_folder() -> Path:
    """Return the folder of this project's caches: $M2AE_CACHE or the user's cache folder."""
    if chosen := os.environ.get("M2AE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2ae"


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


def library_path(compiler: Compiler) -> Path:
    """Return where the library for these sources, this PyTorch and this compiler lies, built or not."""
    digest = hashlib.sha256()
    # The processor family is part of the key because home folders are shared between machines.
    flags = repr((FLAGS, ISA_FLAGS, compiler.openmp))
    for part in (torch.__version__, compiler.version, platform.machine(), flags):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return cache_folder() / f"ops-{digest.hexdigest()[:16]}" / LIBRARY_NAME


def build(*, verbose: bool = False) -> Path:
    """Return the path of the library, compiling it first when it is not in the cache.

    Raises:
        BuildError: no compiler, or the compiler failed.
    """
    from filelock import FileLock, Timeout  # comes with PyTorch

    compiler = find_compiler()
    target = library_path(compiler)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "build.lock", timeout=LOCK_TIMEOUT):
            if not target.exists():
                logger.warning("compiling the CPU kernels into %s (once, some 20 seconds)", target.parent)
                _compile(compiler, target, verbose=verbose)
    except Timeout as error:
        raise BuildError(f"another process holds {target.parent / 'build.lock'} for over {LOCK_TIMEOUT} s") from error
    except OSError as error:
        raise BuildError(f"cannot write to the cache: {error}; set M2AE_CACHE to another folder") from error
    return target


def _compile(compiler: Compiler, target: Path, *, verbose: bool) -> None:
    """Compile all sources into a temporary folder and move the finished library to `target` in one step."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
        work = Path(folder)
        sources = [s for s in sorted(SOURCES.glob("*.cpp")) if s.name not in ISA_FLAGS or _is_x86()]
        objects = [work / f"{source.stem}.o" for source in sources]
        commands = [_compile_command(compiler, s, o) for s, o in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            logs = list(pool.map(lambda command: _run(command, verbose), commands))
        library = work / LIBRARY_NAME
        if all(code == 0 for code, _ in logs):
            logs.append(_run(_link_command(compiler, objects, library), verbose))
        log_file = target.parent / "build.log"
        log_file.write_text("\n".join(text for _, text in logs))
        if any(code != 0 for code, _ in logs):
            raise BuildError(f"the compiler failed; its output is in {log_file}")
        os.replace(library, target)


def _compile_command(compiler: Compiler, source: Path, target: Path) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    includes = ["-isystem", str(include), "-isystem", str(include / "torch" / "csrc" / "api" / "include")]
    openmp = ["-fopenmp"] if compiler.openmp else []
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    isa = ISA_FLAGS.get(source.name, ())
    return [compiler.command, *FLAGS, *isa, *openmp, abi, *includes, "-c", str(source), "-o", str(target)]


def _link_command(compiler: Compiler, objects: list[Path], library: Path) -> list[str]:
    torch_libraries = f"-L{Path(torch.__file__).parent / 'lib'}"
    openmp = ["-fopenmp"] if compiler.openmp else []
    parts = [*map(str, objects), torch_libraries, "-ltorch_cpu", "-lc10"]
    return [compiler.command, "-shared", *openmp, *parts, "-o", str(library)]


def _run(command: list[str], verbose: bool) -> tuple[int, str]:
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    text = " ".join(command) + "\n" + answer.stdout
    if verbose:
        print(text)
    return answer.returncode, text


def _has_openmp(compiler: str) -> bool:
    """Return whether a small OpenMP program links; Clang often comes without the library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        command = [compiler, "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(Path(folder) / "probe.so")]
        return subprocess.run(command, capture_output=True).returncode == 0


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def main() -> int:
    """Build ahead of the first use and print what is active; the exit status is 1 without a library."""
    from .loader import backend

    parser = argparse.ArgumentParser(description="Compile the kernels of m2ae_ops and print what is active.")
    parser.add_argument("--verbose", action="store_true", help="print compiler commands and output")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        print(f"library: {build(verbose=arguments.verbose)}")
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(f"active: {backend()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
