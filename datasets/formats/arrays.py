"""Read NumPy arrays from files that need not be what they say: the header is compared with the file before anything is allocated."""

import io
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.reading import check_file, check_room, reading

_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_npy(path: Path, *, mapped: bool = False, what: str = "a NumPy array") -> np.ndarray:
    """Read the array of a `.npy` file.

    Args:
        mapped: map it copy-on-write, so that only what is used is read and a stray write never reaches the file.

    Raises:
        UserError: the file cannot be read, is no array of plain values, or holds less than its header says.
    """
    size = check_file(path)
    with reading(path, what), path.open("rb") as file:
        shape, fortran, dtype = _header(file, size)
        if mapped:
            mode = {"mode": "c", "offset": file.tell(), "order": "F" if fortran else "C"}
            return np.memmap(path, dtype=dtype, shape=shape, **mode)
        check_room(path, math.prod(shape) * dtype.itemsize, "holds")
        return np.fromfile(file, dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


def load_npz(path: Path) -> np.ndarray:
    """Read the array `points` of a `.npz` file, or its only one.

    Raises:
        ValueError: it holds several and none of that name, or less than a header says.
    """
    check_file(path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if not info.is_dir()}
        name = "points" if "points" in members else next(iter(members), None)
        if name is None or (name != "points" and len(members) != 1):
            raise ValueError(f"holds the arrays {', '.join(list(members)[:8]) or 'none'}; name one of them points")
        info = members[name]
        check_room(path, info.file_size, "unpacks to")
        with archive.open(info) as member:
            # A member cannot be larger than it announces: the archive stops there.
            content = io.BytesIO(member.read(info.file_size))
    shape, fortran, dtype = _header(content, info.file_size)
    return _values(content, shape, fortran, dtype)


def _header(file: BinaryIO, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, order and type; `size` bytes are in the file as a whole."""
    version = np.lib.format.read_magic(file)
    shape, fortran, dtype = _READERS.get(version, np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are not read; store numbers")
    needed = math.prod(shape) * dtype.itemsize
    left = size - file.tell()
    if needed > left or min(shape, default=0) < 0:
        raise ValueError(f"its header says {shape} of {dtype}, {needed:,} bytes, and it holds {max(left, 0):,}")
    return shape, fortran, dtype


def _values(file: BinaryIO, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> np.ndarray:
    data = file.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
