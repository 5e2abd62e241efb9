"""Read published pickles of NumPy arrays without running anything that they ask for.

A pickle is a program: it may name any function and call it. Here every name it may use stands for code of this file, which
rebuilds arrays of numbers from their bytes; any other name ends the reading.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.reading import check_file, check_room, reason

_NUMBERS = re.compile(r"[fiub][1248]")  # dtype codes of plain numbers


class _Forbidden(pickle.UnpicklingError):
    """The file names something that no pickle of arrays needs."""


class _DType:
    """A dtype as a pickle describes it: a code, then a state with the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any):
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise _Forbidden(f"arrays of type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise _Forbidden(f"byte order {state[1]!r}")
        self.order = state[1]

    def numpy(self) -> np.dtype:
        return np.dtype(("" if self.order == "|" else self.order) + self.code)


class _Array:
    """An array as a pickle describes it: nothing, then a state with shape, dtype and bytes."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(raw, str):  # written by Python 2
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _DType):
        raise _Forbidden("arrays that are not plain numbers")
    return np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)


# One class a permitted name. Instances without attributes are what a pickle gets to hold, so that it can only call them.


class _Reconstruct:
    __slots__ = ()

    def __call__(self, *_) -> _Array:
        return _Array()


class _FromBuffer:
    __slots__ = ()

    def __call__(self, raw, dtype, shape, order) -> _Array:
        array = _Array()
        array.value = _array(raw, dtype, shape, order)
        return array


class _Scalar:
    __slots__ = ()

    def __call__(self, dtype, raw) -> int | float | bool:
        return _array(raw, dtype, (), "C").item()


class _MakeDType:
    __slots__ = ()

    def __call__(self, code, *_) -> _DType:
        return _DType(code)


class _Encode:
    __slots__ = ()

    def __call__(self, text, codec="latin1") -> bytes:
        if not isinstance(text, str) or codec != "latin1":
            raise _Forbidden(f"text in {codec!r}")
        return text.encode("latin1")


class _Token:
    __slots__ = ()


_PERMITTED = {
    ("numpy", "ndarray"): _Token,
    ("numpy", "dtype"): _MakeDType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("numpy._core", "numpy.core"), name)  # NumPy 2 renamed it
        if key not in _PERMITTED:
            raise _Forbidden(f"{module}.{name}")
        return _PERMITTED[key]()


def read_arrays(path: Path, expected: str) -> Any:
    """Return what a pickle of lists, tuples, dicts, numbers, strings and arrays of numbers holds; the arrays are read-only.

    Needs as much memory as the file is large.

    Args:
        expected: what the file should hold, for messages.

    Raises:
        UserError: the file is cut short, is no pickle, or asks for anything else, which is not done.
    """
    check_room(path, check_file(path))
    try:
        with path.open("rb") as file:
            return _resolve(_Unpickler(file, encoding="latin1").load(), {})
    except _Forbidden as error:
        raise UserError(
            f"{path}: asks for {error}, which data files have no use for; nothing in it was run. Expected {expected}. "
            "Do not use this file: get it again from a source you trust, or delete it and give the original files"
        ) from error
    except Exception as error:  # a pickle that is cut short or built wrong raises anything
        raise _unreadable(path, expected, error) from error


def _unreadable(path: Path, expected: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: cannot be read ({reason(error)}); expected {expected}. "
        "The file is cut short, damaged or of another kind: copy or download it again, or delete it"
    )


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins by the arrays that they hold.

    Args:
        done: what is resolved already, by id: one list may stand in many places, and would be walked as often.
    """
    if isinstance(value, _Array):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) not in done:
        if isinstance(value, list | tuple):
            done[id(value)] = type(value)(_resolve(entry, done) for entry in value)
        elif isinstance(value, dict):
            done[id(value)] = {key: _resolve(entry, done) for key, entry in value.items()}
        else:
            raise _Forbidden(f"a bare {type(value).__name__.lstrip('_')}")
    return done[id(value)]
