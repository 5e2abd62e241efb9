"""What would make a host wait for its device, found without a device: tensors on `meta` stand for those of a GPU.

A step that reads no value runs on `meta` as it would on a GPU. Reading one is impossible there, and the copies are watched here.
"""

import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).parent.parent

# Operations whose result, or its shape, the host reads from the device.
READING = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
)
# Those that do where an index is a mask.
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
# Calls of Python that build a tensor from numbers on the host and copy it.
BUILDING = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


def place() -> str:
    """Return the line of this project that is being run."""
    own = [frame for frame in traceback.extract_stack() if "/.venv/" not in frame.filename]
    own = [frame for frame in own if Path(frame.filename).is_relative_to(ROOT) and "tests" not in frame.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}" if own else "a test"


class HostWaits(TorchDispatchMode):
    """Collect, as text, the operations for which a host would wait.

    Args:
        everywhere: count reading a tensor of the CPU too, for code that would have it on the device.
    """

    def __init__(self, *, everywhere: bool = False):
        super().__init__()
        self.found: list[str] = []
        self.staged: list[Tensor] = []  # what was locked into memory; kept, so that no other tensor takes its identity
        self._everywhere = everywhere
        self._calls = _Calls(self)

    def __enter__(self):
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def lock(self, values: Tensor) -> Tensor:
        """Stand for `utils.device._lock` where no memory can be locked."""
        self.staged.append(values)
        return values

    def note(self, what: str) -> None:
        self.found.append(f"{what} at {place()}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self._everywhere or any(tensor.device.type != "cpu" for tensor in tensors):
            masks = name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
            unsized = str(func) == "aten.repeat_interleave.Tensor" and kwargs.get("output_size") is None
            if name in READING or masks or unsized:
                self.note(str(func))
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            if source.device.type != out.device.type and not self._is_staged(source):
                self.note(f"copy from {source.device.type} to {out.device.type}")
        return out

    def _is_staged(self, source: Tensor) -> bool:
        return any(source is staged for staged in self.staged)


class _Calls(TorchFunctionMode):
    """Notes what a dispatch mode does not see: tensors that are built from numbers."""

    def __init__(self, waits: HostWaits):
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            func in BUILDING
            and out.device.type != "cpu"
            and not isinstance(args[0 if func is not Tensor.new_tensor else 1], Tensor)
        ):
            self._waits.note(f"{func.__name__} of numbers")
        return out
