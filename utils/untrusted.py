"""Read checkpoints that hold more than plain data: every object besides tensors and plain values is an empty stand-in.

A pickle is a program: it may name any function and call it. Here a name stands for torch's own functions that rebuild tensors from bytes,
for plain values, or for a class of this file that does nothing.
"""

import collections
import logging
import pickle
import types
from pathlib import Path
from typing import Any

import torch

_LOG = logging.getLogger("m2ae.checkpoint")
# What no checkpoint needs and programs of attackers begin with.
_DANGEROUS = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "importlib", "runpy", "pty", "socket", "ctypes", "code", "codecs", "pickle",
    "_pickle", "marshal", "types", "operator", "functools", "timeit", "bdb", "pdb",
    "webbrowser", "asyncio", "multiprocessing", "threading", "signal",
    "platform", "inspect", "urllib", "http", "requests", "builtins", "__builtin__", "torch.storage", "torch.hub", "torch.utils",
}  # fmt: skip
_BUILTINS = {
    "set": set,
    "frozenset": frozenset,
    "complex": complex,
    "bytearray": bytearray,
    "slice": slice,
    "list": list,
    "dict": dict,
}
_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")


class Refused(pickle.UnpicklingError):
    """The file names what runs programs; the text is its name."""


class StandIn:
    """An object of a class that is not known here: it takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *_, **__) -> "StandIn":
        return StandIn()

    def append(self, value: Any) -> None:
        """Ignore an item."""
        pass

    def extend(self, values: Any) -> None:
        """Ignore items."""
        pass

    def add(self, value: Any) -> None:
        """Ignore an item."""
        pass


def load_with_stand_ins(path: Path, *, keep_going: bool = False) -> Any:
    """Load a checkpoint with stand-ins, leave these out, and say which there were.

    Args:
        keep_going: put a stand-in in place of what runs programs as well. Nothing is run either way.

    Raises:
        Refused: the file names what runs programs.
    """
    met: set[str] = set()
    module = _pickle_module(met, keep_going)
    saved = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    plain = _without(saved, {})
    if plain is None and met:
        raise Refused(sorted(met)[0])
    if met:
        _LOG.warning("%s: objects that are no plain data were left out: %s", path, ", ".join(sorted(met)[:8]))
    return plain


def _pickle_module(met: set[str], keep_going: bool) -> types.SimpleNamespace:
    """Return what torch.load takes for the module pickle."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = _known(module, name)
            if known is not None:
                return known
            if not keep_going and any(module == entry or module.startswith(f"{entry}.") for entry in _DANGEROUS):
                raise Refused(f"{module}.{name}")
            met.add(f"{module}.{name}")
            return type(name.rpartition(".")[2] or "Object", (StandIn,), {})

    def load(file, **options) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="untrusted")


def _known(module: str, name: str) -> Any:
    """Return what a name of a harmless object stands for, else None."""
    import numpy as np

    if module in ("builtins", "__builtin__"):
        return _BUILTINS.get(name)
    if module == "collections":
        return {"OrderedDict": collections.OrderedDict, "defaultdict": _plain_dict, "Counter": dict}.get(name)
    if module == "torch._utils" and name in _TENSORS:
        return getattr(torch._utils, name)
    if module == "torch":
        found = getattr(torch, name, None)
        allowed = isinstance(found, torch.dtype) or name in ("Size", "device", "Tensor") or name.endswith("Storage")
        return found if allowed else None
    if (module, name) == ("torch.nn.parameter", "Parameter"):
        return torch.nn.Parameter
    if module == "_codecs" and name == "encode":
        import _codecs

        return _codecs.encode
    core = module.replace("numpy._core", "numpy.core")
    if core == "numpy" and name in ("ndarray", "dtype"):
        return getattr(np, name)
    if core == "numpy.core.multiarray" and name in ("scalar", "_reconstruct"):
        return {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.empty(0).__reduce__()[0]}[name]
    if core == "numpy.dtypes" and name.endswith("DType"):
        return getattr(np.dtypes, name, None)
    return None


def _plain_dict(*_) -> dict:
    return {}


def _without(value: Any, done: dict[int, Any]) -> Any:
    """Return a value without stand-ins: entries of dicts go, those of lists become None."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        kept = type(value)() if type(value) in (dict, collections.OrderedDict) else {}
        done[id(value)] = kept
        for key, entry in value.items():
            if not isinstance(entry, StandIn) and not isinstance(key, StandIn):
                kept[key] = _without(entry, done)
        return kept
    if isinstance(value, list):
        done[id(value)] = kept = []
        kept.extend(_without(entry, done) for entry in value)
        return kept
    if type(value) is tuple:
        return tuple(_without(entry, done) for entry in value)
    return None if isinstance(value, StandIn) or (isinstance(value, type) and issubclass(value, StandIn)) else value
