"""Files that are written whole or not at all, and checkpoints, which are read without running anything that is in them."""

import contextlib
import errno
import functools
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from utils.errors import UserError, printable
from utils.reading import check_file, explain_read, reading, reason

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "call the command again"
RESUME = "start again with --resume"


def write_atomic(path: str | Path, writer: Callable[[BinaryIO], object], again: str = AGAIN) -> None:
    """Write a file through a temporary one next to it, so that nobody ever reads half of it.

    `writer` gets a binary file object. A temporary file that a killed process left behind is overwritten by the next
    write; a path must have one writer at a time.

    Args:
        again: what to do once the disk has room, for messages.

    Raises:
        UserError: the folder is missing, read-only or full, and so on. What was there before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise UserError(explain_write(path, error, again)) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: Path) -> None:
    # Best effort: a folder that cannot be written cannot be tidied either, and the first error is the one to tell.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to the disk, where the platform lets a folder be opened."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # Some network file systems refuse; the file is whole all the same.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; the same file is read once in a process."""
    state = os.stat(path)
    return _hash(os.path.abspath(path), state.st_size, state.st_mtime_ns)


@functools.cache
def _hash(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def explain_write(path: Path, error: OSError, again: str = AGAIN) -> str:
    """Say why a file cannot be written, and what helps: `again` where the disk is full."""
    path = Path(path)
    remedies = {
        errno.ENOSPC: f"the disk is full; free space and {again}",
        errno.EDQUOT: f"the disk quota is used up; free space and {again}",
        errno.EFBIG: f"the file would be larger than the limit of this system or user; raise it and {again}",
        errno.EROFS: "the file system is read-only; name a folder that can be written",
        errno.EACCES: "no permission to write there; change it or name another folder",
        errno.EPERM: "no permission to write there; change it or name another folder",
        errno.ENOENT: "the folder does not exist; create it",
        errno.ENOTDIR: "a part of the path is a file; choose another folder",
        errno.EEXIST: "a part of the path is a file; choose another folder",
        errno.EISDIR: "a folder of that name is in the way; move it",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    why = remedies.get(error.errno, f"{error.strerror or error}; check the folder")
    return f"cannot write {printable(path.name)} in {printable(path.parent)}: {why}"


def save_checkpoint(path: str | Path, state: dict, again: str = RESUME) -> None:
    """Write a dict of tensors, dicts, lists, numbers and strings, atomically.

    Raises:
        UserError: the file cannot be written; an earlier checkpoint of that name is unchanged.
    """
    write_atomic(path, lambda file: _save(state, file), again)


def save_tensors(path: str | Path, weights: Mapping[str, "Tensor"], entries: Mapping, *, half: bool = False) -> None:
    """Write weights and what is known of them as a safetensors file, atomically (`utils.tensor_files`).

    Args:
        entries: plain data: the configuration, epoch and metrics of a checkpoint, and where it comes from.
        half: store matrices in float16; `read_checkpoint` returns float32.

    Raises:
        UserError: a value is too large for float16, or the file cannot be written.
    """
    from utils.tensor_files import pack_tensors

    data = pack_tensors(path, weights, entries, half=half)
    write_atomic(path, lambda file: file.write(data))


def _save(state: dict, file: BinaryIO) -> None:
    import torch  # Here, because what writes other files does without it.

    try:
        torch.save(state, file)
    except RuntimeError as error:
        # torch closes its archive after a failed or interrupted write, and reports that instead of the cause.
        cause = error.__context__
        while cause is not None and isinstance(cause, RuntimeError):
            cause = cause.__context__
        raise cause or error from None


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint onto the CPU, as plain data: code that a file may carry is never executed.

    Objects besides plain data, such as the flags of another program, are left out, which is said. Files of `safetensors` are read too
    (`utils.tensor_files`).

    Raises:
        UserError: the file is missing, cut short, damaged, no checkpoint at all, or asks for what runs programs.
    """
    path = Path(path)
    kind = _check_kind(path)
    with reading(path, "a checkpoint"):
        saved = _load_tensors(path) if kind == "safetensors" else _load(path)
    if not isinstance(saved, dict):
        raise UserError(
            f"{path}: holds a {type(saved).__name__}, expected a dict with weights; is it a checkpoint? Save model.state_dict()"
        )
    return saved


def _load_tensors(path: Path) -> dict:
    from utils.tensor_files import read_tensors

    return read_tensors(path)


def _load(path: Path) -> dict:
    import torch

    from utils.untrusted import Refused, load_with_stand_ins

    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(mark in str(error) for mark in ("Unsupported global", "unsupported GLOBAL", "Unsupported class")):
            raise UserError(
                f"{path}: is damaged or no torch checkpoint, nothing in it was executed ({_said(error)}); copy or download it again"
            ) from error
    except OSError as error:
        raise UserError(f"{path}: {explain_read(error)}") from error
    except Exception as error:  # the reader meets damaged bytes with anything
        raise UserError(
            f"{path}: is damaged or no torch checkpoint ({reason(error)}); copy or download it again"
        ) from error
    try:
        return load_with_stand_ins(path)
    except Refused as error:
        raise UserError(
            f"{path}: holds the Python object {error} besides plain data; it was refused and nothing in the file was executed. Get the "
            f"checkpoint from a source that you trust, or keep its tensors alone: python -m tools.weights clean {path} OUT.pth"
        ) from error
    except Exception as error:
        raise UserError(
            f"{path}: is damaged or no torch checkpoint ({reason(error)}); copy or download it again"
        ) from error


def _said(error: Exception) -> str:
    return str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0][:120]


def _check_kind(path: Path) -> str:
    """Tell apart, by name and first bytes, what needs no attempt to load it; returns "torch" or "safetensors"."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a checkpoint file in it, for example {path / 'ckpt-best.pth'}")
    if not os.path.lexists(path):
        entries = path.parent.iterdir() if path.parent.is_dir() else ()
        others = sorted(entry.name for entry in entries if entry.suffix in (".pth", ".safetensors"))
        hint = f"checkpoints there: {', '.join(others[:8])}" if others else "there is no .pth file in that folder"
        raise UserError(f"{path}: checkpoint does not exist; {hint}")
    size = check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise UserError(f"{path}: {explain_read(error)}") from error
    again = "copy or download it again"
    if not head:
        raise UserError(f"{path}: the file is empty; {again}")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the checkpoint itself; fetch it with git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path}: is a web page, not a checkpoint; the download link led to a page, {again}")
    if head.startswith(b"\x1f\x8b"):
        raise UserError(f"{path}: is compressed by gzip; unpack it first: gunzip {path.name}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    if head.startswith(b"PK"):
        _check_archive(path, again)
    elif _is_text(head):
        raise UserError(f"{path}: is a text file, not a checkpoint; give a .pth file")
    elif path.suffix == ".safetensors":  # whose header is damaged
        return "safetensors"
    return "torch"


def _check_archive(path: Path, again: str) -> None:
    """Look into the zip archive of a checkpoint: torch itself does not compare the checksums that it holds."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: is cut short ({path.stat().st_size} bytes, the end is missing); {again}")
    with reading(path, "a checkpoint"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not any(name.endswith("data.pkl") for name in names):
            raise UserError(
                f"{path}: is a zip archive (of {', '.join(names[:3]) or 'nothing'}), not a checkpoint; unpack it first"
            )
        damaged = archive.testzip()
        if damaged:
            raise UserError(f"{path}: is damaged: the checksum of {damaged} differs; {again}")


def _is_text(head: bytes) -> bool:
    """Say whether bytes are printable text and do not begin as a pickle does, protocol 0 included."""
    return not head.startswith((b"\x80", b"(", b"c", b"}", b"]")) and all(
        byte in b"\t\n\r\f" or byte >= 32 for byte in head
    )


def _plain_numpy() -> list:
    """List what official checkpoints hold besides plain data: NumPy numbers, under their old and new module names."""
    import _codecs

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *kinds,
        _codecs.encode,
    ]
