"""Build the emulated CUDA kernels with g++, once per version of all that goes into them."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from extensions.m2ae_ops.building import cache_folder
from extensions.m2ae_ops.building.torch_files import torch_files
from extensions.m2ae_ops.private.library import CSRC
from tests.extensions.cuda_on_cpu.rewrite import rewrite_folder

HERE = Path(__file__).parent
NAMESPACE = "m2ae_emulated"
# Squared distances must not be contracted, as in the build of the kernels.
FLAGS = ("-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing", f"-I{HERE / 'stubs'}")


@dataclass(frozen=True)
class Variant:
    """How the emulated kernels are built.

    Attributes:
        name: "plain", "sites" (unoptimised: calls of collectives are told apart), "address" or "thread" (sanitizers).
        arch: what __CUDA_ARCH__ is.
        files: sources to take; empty for all.
        edits: (file, text, replacement), see `rewrite_folder`.
    """

    name: str = "plain"
    arch: int = 900
    files: tuple[str, ...] = ()
    edits: tuple[tuple[str, str, str], ...] = ()


CHECKS = "-fsanitize=address,undefined"
OPTIONS = {  # of the compiler and of the linker
    "plain": (("-O1",), ()),
    "sites": (("-O0", "-DEMULATOR_SITES"), ()),
    "address": (("-O1", "-g1", CHECKS, "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"), (CHECKS,)),
    "thread": (("-O1", "-g1", "-fsanitize=thread"), ("-fsanitize=thread",)),
}


def compiler() -> str | None:
    """Return g++, or None where there is none."""
    return shutil.which("g++")


def build(variant: Variant = Variant()) -> Path:
    """Return the library of a variant, from the cache or built now.

    Raises:
        RuntimeError: g++ failed, with what it said.
    """
    files = torch_files(Path(torch.__file__).parent)
    includes = [part for path in files.includes for part in ("-isystem", str(path))]
    compile_flags, link_flags = OPTIONS[variant.name]
    defined = (f"-DEMULATED_ARCH={variant.arch}", f"-D_GLIBCXX_USE_CXX11_ABI={files.cxx11_abi}")
    flags = [f"-std=c++{files.standard}", *FLAGS, *defined, *includes]
    target = cache_folder() / "cuda-on-cpu" / f"{_key(variant, [*flags, *compile_flags, files.version])}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        work = Path(folder)
        unit = rewrite_folder(CSRC / "cuda", work, NAMESPACE, variant.files, variant.edits)
        forced = ["-include", str(HERE / "emulator.h"), "-I", str(HERE)]
        _run([compiler(), *flags, *compile_flags, *forced, "-c", str(unit), "-o", str(work / "kernels.o")])
        _run([compiler(), *flags, "-O2", *forced, "-c", str(HERE / "runtime.cpp"), "-o", str(work / "runtime.o")])
        _run(
            [compiler(), "-shared", *link_flags, str(work / "kernels.o"), str(work / "runtime.o"), f"-L{files.folder / 'lib'}",
             "-ltorch_cpu", "-lc10", "-o", str(work / "library.so")]
        )  # fmt: skip
        os.replace(work / "library.so", target)
    return target


class Emulated:
    """The emulated ops, loaded: attributes are ops of the namespace, and the device is what `set` makes it."""

    def __init__(self, library: Path):
        self._definitions = _declare()
        torch.ops.load_library(library)
        self.path = library
        self.control = ctypes.CDLL(str(library))
        self.control.emulator_count.restype = self.control.emulator_kernels.restype = ctypes.c_int64

    def __getattr__(self, name: str):
        return getattr(getattr(torch.ops, NAMESPACE), name)

    def set(self, **settings: int) -> None:
        """Start from the default device (an H100) and change what is given, see `emulator_set`."""
        self.control.emulator_reset()
        for name, value in settings.items():
            self.control.emulator_set(name.encode(), ctypes.c_int64(value))

    def count(self, name: str) -> int:
        """Return how many "launches", "meetings" or "switches" there were."""
        return self.control.emulator_count(name.encode())

    def kernels(self) -> dict[str, bool]:
        """Return every kernel of the library by its name and template arguments, and whether it has run."""
        room = 4096
        offsets = (ctypes.c_int64 * room)()
        count = self.control.emulator_kernels(offsets, ctypes.c_int64(room))
        names = {name for path in (CSRC / "cuda").glob("*.cu*") for name in _kernel_names(path.read_text())}
        answer = subprocess.run(["nm", "-C", str(self.path)], capture_output=True, text=True, check=True)
        symbols = {}
        for line in answer.stdout.splitlines():
            address, _, symbol = line.partition(" ")
            symbols[symbol[2:]] = int(address, 16) if address.strip() else None
        start = symbols["emulator_set"]
        ran = {start + offset for offset in offsets[:count]}
        found = {}
        for symbol, address in symbols.items():
            plain = re.sub(r"m2ae::(?:\w+_cu::|\(anonymous namespace\)::)", "", symbol)
            short = plain.partition("(")[0].removeprefix("void ")
            if address is not None and short.partition("<")[0] in names:
                found[short] = address in ran
        return found


def _kernel_names(text: str) -> list[str]:
    return re.findall(r"__global__ void\s+(\w+)\(", re.sub(r"__launch_bounds__\([^)]*\)", "", text))


@functools.cache
def _declare() -> torch.library.Library:
    """Declare every op that the CUDA sources register, with the schema of the package's own, in the other namespace.

    Once and for the rest of the process: PyTorch's compiler asks for every op that was ever used, and fails for one that is gone.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for path in sorted((CSRC / "cuda").glob("*.cu")):
        for name in re.findall(r'm\.impl\("(\w+)"', path.read_text()):
            schema = str(torch._C._jit_get_schemas_for_operator(f"m2ae::{name}")[0])
            library.define(schema.removeprefix("m2ae::"))
    return library


def _key(variant: Variant, flags: list[str]) -> str:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    anywhere = [flag.replace(str(HERE), "") for flag in flags]  # other checkouts of the same sources have the same key
    digest = hashlib.sha256(repr((version, variant, anywhere)).encode())
    ours = [*sorted(HERE.rglob("*.h")), HERE / "runtime.cpp", HERE / "rewrite.py"]
    for path in [*ours, *sorted((CSRC / "cuda").iterdir())]:
        digest.update(path.name.encode() + path.read_bytes())
    return f"{variant.name}-{digest.hexdigest()[:16]}"


def _run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{answer.stderr[-8000:]}")
