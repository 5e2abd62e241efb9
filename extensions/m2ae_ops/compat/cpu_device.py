"""Let code that is written for CUDA run on the CPU: `.cuda()`, `device="cuda"`, torch.cuda and their like mean the CPU.

The names are replaced in PyTorch itself, for the whole process, before the script starts: that reaches threads and forked
workers too; processes that start afresh are reached by `start/sitecustomize.py`. Devices other than CUDA are left alone.
A tensor's `.cuda()` is the tensor itself, as `.to(device)` is on the device where it is. `torch.cuda.is_available()` and
`.is_cuda` are True for the script, but PyTorch's own modules, when they ask, are told the truth.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils import _device as device_context

from .cuda_stand_ins import Autocast, CudaAutocast, PassingScaler, asked_by_torch, cuda_names

CPU = torch.device("cpu")
FACTORIES = [
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "range",
    "scalar_tensor",
    "sparse_coo_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
    "zeros_like",
    "bartlett_window",
    "blackman_window",
    "hamming_window",
    "hann_window",
    "kaiser_window",
]
NEW_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


@functools.cache
def map_cuda_to_cpu() -> None:
    """Replace CUDA by the CPU in this process, once and for good."""
    _map_factories()
    _map_tensors()
    _map_modules()
    _map_loading()
    _map_precision()
    _map_distributed()
    for name, value in cuda_names().items():
        setattr(torch.cuda, name, value)


def to_cpu(device):
    """Return the CPU for any way to name a CUDA device (a string, a torch.device, a number), else what was given."""
    if isinstance(device, torch.device):
        return CPU if device.type == "cuda" else device
    if isinstance(device, str):
        return CPU if device.split(":")[0] == "cuda" else device
    return CPU if isinstance(device, int) and not isinstance(device, bool) else device


def _with_cpu(function: Callable, *, first: bool = False) -> Callable:
    """Return the function with its keyword `device`, or also the first argument after self, mapped."""

    @functools.wraps(function)
    def mapped(*args, **kwargs):
        if kwargs.get("device") is not None:
            kwargs["device"] = to_cpu(kwargs["device"])
        if first and len(args) > 1:
            args = (args[0], to_cpu(args[1]), *args[2:])
        return function(*args, **kwargs)

    return mapped


def _itself(value, *args, **kwargs):
    return value


def _map_factories() -> None:
    device_context._device_constructors()  # remembers the functions that `with torch.device(...)` acts on, before they change
    for name in FACTORIES:
        original = getattr(torch, name)
        mapped = _with_cpu(original)
        setattr(torch, name, mapped)
        builtin = torch.jit._builtins._find_builtin(original)
        if builtin is not None:  # let TorchScript compile a call of the new function as one of the old
            torch.jit._builtins._register_builtin(mapped, builtin)
    for name in ("fftfreq", "rfftfreq"):
        setattr(torch.fft, name, _with_cpu(getattr(torch.fft, name)))
    # `with torch.device("cuda"):` and torch.set_default_device
    context = device_context.DeviceContext
    context.__init__ = _with_cpu(context.__init__, first=True)


def _map_tensors() -> None:
    for name in NEW_METHODS:
        setattr(torch.Tensor, name, _with_cpu(getattr(torch.Tensor, name)))
    torch.Tensor.to = _with_cpu(torch.Tensor.to, first=True)
    torch.Tensor.cuda = torch.Tensor.pin_memory = _itself
    torch.Tensor.is_cuda = property(lambda tensor: tensor.device.type == "cpu" and not asked_by_torch())
    as_type = torch.Tensor.type

    @functools.wraps(as_type)
    def mapped_type(tensor, dtype=None, *args, **kwargs):
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.")
        return as_type(tensor, dtype, *args, **kwargs)

    torch.Tensor.type = mapped_type
    torch.Generator = Generator
    set_type = torch.set_default_tensor_type
    torch.set_default_tensor_type = lambda kind: set_type(
        kind.replace("torch.cuda.", "torch.") if isinstance(kind, str) else kind
    )


class _AnyGenerator(type):
    """Let every generator be an instance of the replaced class."""

    def __instancecheck__(cls, instance):
        return isinstance(instance, torch._C.Generator)


class Generator(torch._C.Generator, metaclass=_AnyGenerator):
    """torch.Generator with its device mapped."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, device=to_cpu(device))


class DataParallel(nn.DataParallel):
    """nn.DataParallel over no device: calls the module, which has its usual name `module`."""

    def __init__(self, module, device_ids=None, output_device=None, dim=0):
        nn.Module.__init__(self)
        self.module, self.dim, self.device_ids, self.output_device = module, dim, [], None


def _call_once(module, inputs, device_ids=None, output_device=None, dim=0, module_kwargs=None):
    """nn.parallel.data_parallel over no device."""
    return module(*(inputs if isinstance(inputs, tuple) else (inputs,)), **(module_kwargs or {}))


def _map_modules() -> None:
    nn.Module.to = _with_cpu(nn.Module.to, first=True)
    nn.Module.cuda = _itself
    nn.DataParallel = nn.parallel.DataParallel = DataParallel
    nn.parallel.data_parallel = _call_once
    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(_itself)  # the CPU has no synchronised batch norm


def _map_loading() -> None:
    load, load_archive, init = torch.load, torch.jit.load, torch.utils.data.DataLoader.__init__

    @functools.wraps(load)
    def mapped_load(f, map_location=None, *args, **kwargs):
        # Whatever it is, a function included, it names a device that stands for the CPU.
        return load(f, "cpu", *args, **kwargs)

    @functools.wraps(load_archive)
    def mapped_load_archive(f, map_location=None, *args, **kwargs):
        return load_archive(f, "cpu", *args, **kwargs)

    @functools.wraps(init)
    def mapped_init(self, *args, **kwargs):
        init(self, *args, **{**kwargs, "pin_memory": False} if "pin_memory" in kwargs else kwargs)

    torch.load, torch.jit.load = mapped_load, mapped_load_archive
    torch.utils.data.DataLoader.__init__ = mapped_init


def _map_precision() -> None:
    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = Autocast
    torch.cuda.amp.autocast = torch.cuda.amp.autocast_mode.autocast = CudaAutocast
    torch.amp.GradScaler = torch.cuda.amp.GradScaler = torch.cuda.amp.grad_scaler.GradScaler = PassingScaler


def _map_distributed() -> None:
    if not torch.distributed.is_available():
        return
    start = torch.distributed.init_process_group
    wrap = nn.parallel.DistributedDataParallel.__init__

    @functools.wraps(start)
    def mapped_start(backend=None, *args, **kwargs):
        start("gloo" if backend == "nccl" else backend, *args, **kwargs)

    @functools.wraps(wrap)
    def mapped_wrap(self, module, device_ids=None, output_device=None, *args, **kwargs):
        wrap(self, module, None, None, *args, **kwargs)

    torch.distributed.init_process_group = mapped_start
    nn.parallel.DistributedDataParallel.__init__ = mapped_wrap
