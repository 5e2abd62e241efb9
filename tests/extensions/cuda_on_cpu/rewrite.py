"""Turn the package's CUDA sources into C++ for emulator.h: what no macro can replace, by regular expressions.

Line numbers stay. A construct that this file does not know is an error, so that new device code does not slip through unread.
"""

import re
from pathlib import Path

LAUNCH = re.compile(r"(\w+)<<<(.+?), (\w+), (\w+), .+?>>>\((.*)\);")
SHARED = re.compile(r"(?<!extern )__shared__ (?:__align__\(\d+\) )?([\w<>, ]+?) (\w+(?:\[[^;]*\])?);")
DYNAMIC = re.compile(r"extern __shared__ __align__\(16\) unsigned char (\w+)\[\];")
REGISTRATION = re.compile(r"TORCH_LIBRARY_IMPL\(m2ae, CUDA, (\w)\)")
ASSERT = re.compile(r"CUDA_KERNEL_ASSERT\((.+)\);")
LEFT = re.compile(r"<<<|__shared__|CUDA_KERNEL_ASSERT|\b__CUDA_ARCH__|\basm\b|__constant__|__managed__|\bcudaMalloc")
KNOWN = {
    "__syncthreads", "__syncthreads_or", "__syncwarp", "__shfl_sync", "__shfl_xor_sync", "__ballot_sync", "__any_sync",
    "__match_any_sync", "__reduce_max_sync", "__reduce_min_sync", "__popc", "__ffs", "__brev", "__umul64hi", "__float_as_uint",
    "__uint_as_float", "__double_as_longlong", "__longlong_as_double", "__int128", "__device__", "__global__", "__launch_bounds__",
    "__align__",
}  # fmt: skip


class RewriteError(ValueError):
    """A CUDA source holds what the emulator does not know."""


def rewrite(text: str, name: str, namespace: str) -> str:
    """Return a CUDA source as C++ that registers its ops for CPU tensors in another namespace.

    Args:
        text: of the file.
        name: path for messages of the compiler.
        namespace: of the registered ops.

    Raises:
        RewriteError: unknown device code.
    """
    text = DYNAMIC.sub(r"unsigned char* \1 = ::emulator::dynamic_shared();", text)
    text = SHARED.sub(_shared, text)
    text = LAUNCH.sub(r"::emulator::run(::emulator::address(\1), \2, \3, \4, 1, [&] { \1(\5); });", text)
    text = ASSERT.sub(r'::emulator::kernel_assert(\1, "\1");', text)
    text = re.sub(r"\b__CUDA_ARCH__\b", "EMULATED_ARCH", text)
    text = REGISTRATION.sub(rf"TORCH_LIBRARY_IMPL({namespace}, CPU, \1)", text)
    code = re.sub(r"//.*", "", text)
    left = {match[0] for match in LEFT.finditer(code)}
    left |= set(re.findall(r"\b__[a-z]\w+\b", code)) - KNOWN
    if left:
        raise RewriteError(
            f"{name}: the emulator does not know {', '.join(sorted(left))}; teach it to rewrite.py and emulator.h"
        )
    return f'#line 1 "{name}"\n{text}'


def rewrite_folder(
    source: Path,
    target: Path,
    namespace: str,
    files: tuple[str, ...] = (),
    edits: tuple[tuple[str, str, str], ...] = (),
) -> Path:
    """Rewrite the headers and sources of a folder into another one; return a file that includes all sources.

    One translation unit reads PyTorch's headers once. What sources keep to themselves gets a namespace for each file.

    Args:
        source: the folder of *.cu and *.cuh.
        target: an existing folder.
        namespace: of the registered ops.
        files: names of the sources to take; by default all.
        edits: (file, text, replacement), applied before; each text must occur once.

    Raises:
        RewriteError: unknown device code, or an edit that does not fit.
    """
    names = sorted(path.name for path in source.glob("*.cu") if not files or path.name in files)
    for path in sorted(source.glob("*.cuh")) + [source / name for name in names]:
        text = path.read_text(encoding="utf-8")
        for file, old, new in edits:
            if file == path.name:
                if text.count(old) != 1:
                    raise RewriteError(f"{file}: {old!r} occurs {text.count(old)} times, not once")
                text = text.replace(old, new)
        if path.suffix == ".cu":
            text = text.replace("\nnamespace {", f"\ninline namespace {path.stem}_cu {{", 1)
        (target / path.name).write_text(rewrite(text, str(path), namespace), encoding="utf-8")
    unit = target / "all.cpp"
    unit.write_text("".join(f'#include "{name}"\n' for name in names), encoding="utf-8")
    return unit


def _shared(match: re.Match) -> str:
    kind, declarators = match[1], match[2]
    # `T low[2][3], high[2][3]` declares several.
    names = re.findall(r"(?:^|, )(\w+)", re.sub(r"\[[^\]]*\]", "", declarators))
    holder = f"Shared_{names[0]}"
    aliases = " ".join(f"auto& {name} = shared_{names[0]}.{name};" for name in names)
    return (
        f"struct {holder} {{ alignas(16) {kind} {declarators}; }}; "
        f"auto& shared_{names[0]} = ::emulator::shared<{holder}>(); {aliases}"
    )
