"""Memory-mapped cache of prepared arrays, so that a second start is immediate.

One folder an entry, named by what it was made from, holds one `.npy` an array and `manifest.json` with the fingerprint
of the sources, sizes and checksums. It is written under a temporary name and renamed; whatever does not agree with its
manifest is rebuilt. A cache that cannot be written only costs time: the arrays then stay in memory.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.environment import home
from utils.errors import printable

FORMAT = 2  # of entries, and of what readers do to coordinates on the way in
BLOCK = 1 << 20
WHOLE_CHECK = 256 << 20  # files up to this size are checked byte for byte, larger ones in evenly spaced blocks
SPACED_BLOCKS = 64

Chunks = Callable[[], Iterator[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Recipe:
    """What an entry is made of.

    Args:
        name: readable start of the folder name.
        key: JSON-like values that, with `sources`, say what the arrays hold; a change of these is another entry.
        version: of the code that makes it; another version makes the entry stale.
        sources: files it is made from; a change of their size or time makes the entry stale.
        fields: array name -> (dtype, shape of one row); `count` rows each.
        chunks: yields dicts of equally long pieces of all arrays, in order; called again after a failed write.
    """

    name: str
    key: dict
    sources: list[Path]
    fields: dict[str, tuple[str, tuple[int, ...]]]
    count: int
    chunks: Chunks
    version: str = ""


def cache_folder() -> Path:
    """Return `$M2AE_CACHE`, or `m2ae/data` in the user's cache folder of this platform."""
    chosen = os.environ.get("M2AE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or str(home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(home() / ".cache")
    return Path(base) / "m2ae" / "data"


def cached(recipe: Recipe) -> dict[str, np.ndarray]:
    """Return the arrays of `recipe`, from the cache if it holds them whole and up to date, else built and stored.

    The arrays are memory-mapped copy-on-write: a stray write never reaches the file.
    """
    paths = [printable(path.resolve()) for path in recipe.sources]
    identity = json.dumps([recipe.name, recipe.key, paths], sort_keys=True)
    folder = cache_folder() / f"{recipe.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    fingerprint = _fingerprint(recipe)
    found = _open(folder, recipe, fingerprint)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            found = _open(folder, recipe, fingerprint)  # another process may have built it while this one waited
            if found is None:
                _build(folder, recipe, fingerprint)
                found = _open(folder, recipe, fingerprint)
    except OSError as error:
        _warn(
            f"the data cache {cache_folder()} cannot be used ({error.strerror or error}); keeping the data "
            "in memory. Point M2AE_CACHE to a writable folder with enough space"
        )
        return _in_memory(recipe)
    return found if found is not None else _in_memory(recipe)


def _fingerprint(recipe: Recipe) -> str:
    stats = [_size_and_time(path) for path in recipe.sources]
    fields = {key: [dtype, list(shape)] for key, (dtype, shape) in recipe.fields.items()}
    text = json.dumps([FORMAT, recipe.version, recipe.key, recipe.count, fields, stats], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0  # a link to nothing: the reader says so
    return stat.st_size, stat.st_mtime_ns


def _open(folder: Path, recipe: Recipe, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Map the arrays of a sound entry, or return None for one that is absent, stale, cut short or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["fingerprint"] != fingerprint:
            return None
        arrays = {}
        for key in recipe.fields:
            expected = manifest["arrays"][key]
            path = folder / f"{key}.npy"
            if path.stat().st_size != expected["bytes"] or _checksum(path) != expected["checksum"]:
                return None
            arrays[key] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path) -> int:
    """CRC-32 of the whole file, or of evenly spaced blocks (first and last included) of a very large one."""
    size = path.stat().st_size
    starts: list[int] | range = range(0, size, BLOCK)
    if size > WHOLE_CHECK:
        starts = [i * (size - BLOCK) // (SPACED_BLOCKS - 1) for i in range(SPACED_BLOCKS)]
    value = 0
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            value = zlib.crc32(file.read(BLOCK), value)
    return value


def _build(folder: Path, recipe: Recipe, fingerprint: str) -> None:
    """Write the entry under a temporary name in the same folder, then rename it into place."""
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        _write_arrays(work, recipe)
        arrays = {
            key: {"bytes": (work / f"{key}.npy").stat().st_size, "checksum": _checksum(work / f"{key}.npy")}
            for key in recipe.fields
        }
        manifest = {"name": recipe.name, "key": recipe.key, "fingerprint": fingerprint, "arrays": arrays}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
            os.replace(folder, old / "old")
            shutil.rmtree(old, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_arrays(work: Path, recipe: Recipe) -> None:
    """Stream the chunks to disk. Plain writes, because a full disk kills a process that fills a memory map."""
    files = {key: (work / f"{key}.npy").open("wb") for key in recipe.fields}
    try:
        for key, (dtype, shape) in recipe.fields.items():
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (recipe.count, *shape)}
            np.lib.format.write_array_header_1_0(files[key], header)
        rows = 0
        for chunk in recipe.chunks():
            for key, file in files.items():
                file.write(np.ascontiguousarray(chunk[key], dtype=recipe.fields[key][0]).data)
            rows += len(chunk[next(iter(files))])
        assert rows == recipe.count, f"{recipe.name}: {rows} rows built, {recipe.count} announced"
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()


def _in_memory(recipe: Recipe) -> dict[str, np.ndarray]:
    arrays = {key: np.empty((recipe.count, *shape), dtype) for key, (dtype, shape) in recipe.fields.items()}
    row = 0
    for chunk in recipe.chunks():
        length = len(next(iter(chunk.values())))
        for key, array in arrays.items():
            array[row : row + length] = chunk[key]
        row += length
    return arrays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process build an entry while the others wait; the system frees the lock of a process that dies.

    Without locks (Windows, some network drives) several processes build at once, which is safe but wasteful.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder.parent / f"{folder.name}.lock").open("w") as file:
        with suppress(OSError):  # some drives have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
