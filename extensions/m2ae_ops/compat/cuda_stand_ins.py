"""What stands for torch.cuda on the CPU: one device, whose work is always done, with the memory of nobody."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch

from .advice import PAGE

TENSOR_TYPES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")
NOTHING_TO_DO = [
    "empty_cache",
    "init",
    "ipc_collect",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_memory_stats",
    "set_device",
    "set_per_process_memory_fraction",
    "set_stream",
    "synchronize",
]
COUNTS_OF_NOTHING = [
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "utilization",
]
WITHOUT_COUNTERPART = [
    "CUDAGraph",
    "_lazy_init",
    "cudart",
    "graph",
    "make_graphed_callables",
]  # the second is what PyTorch starts CUDA with


def asked_by_torch() -> bool:
    """Say whether PyTorch's own code calls the caller of this function."""
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name == "torch" or name.startswith("torch.")


def is_available() -> bool:
    """Say yes to a script, and no to PyTorch itself, parts of which would go to the driver then, such as torch.compile."""
    return not asked_by_torch()


is_available._dynamo_marked_constant = True  # torch.compile asks once, instead of looking into the function


def _refuse(*args, **kwargs):
    """Stand for what cannot mean the CPU.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "--device cpu: this call needs a CUDA device and has no counterpart on the CPU (a CUDA graph, or a function that is "
        f"not mapped and was given device='cuda'; device='cpu' would do). What is mapped is in {PAGE}"
    )


def cuda_names() -> dict:
    """Return what each name of torch.cuda is replaced with."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    properties = SimpleNamespace(
        name="CPU", major=0, minor=0, total_memory=memory, multi_processor_count=os.cpu_count() or 1
    )
    answers = {
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,  # optimizers ask before every step
        "device_count": 1,
        "current_device": 0,
        "get_device_name": properties.name,
        "get_device_capability": (properties.major, properties.minor),
        "get_device_properties": properties,
        "mem_get_info": (memory, memory),
        "memory_summary": "",
        "memory_stats": {},
        **dict.fromkeys(NOTHING_TO_DO),
        **dict.fromkeys(COUNTS_OF_NOTHING, 0),
    }
    return {
        **{name: _always(answer) for name, answer in answers.items()},
        **{f"{name}Tensor": getattr(torch, f"{name}Tensor") for name in TENSOR_TYPES},
        **_random_functions(),
        **dict.fromkeys(WITHOUT_COUNTERPART, _refuse),
        "is_available": is_available,
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "default_stream": Stream,
        "stream": contextlib.nullcontext,
        "device": contextlib.nullcontext,
        "device_of": contextlib.nullcontext,
    }


class Event:
    """A moment of the wall clock."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._moment = None

    def record(self, stream=None) -> None:
        """Note the time."""
        self._moment = time.perf_counter()

    def elapsed_time(self, end_event: "Event") -> float:
        """Return the milliseconds until the other event.

        Raises:
            RuntimeError: one of the two was not recorded.
        """
        if self._moment is None or end_event._moment is None:
            raise RuntimeError("Event: both events must be recorded before calculating elapsed time")
        return 1000 * (end_event._moment - self._moment)

    def query(self) -> bool:
        """Return True: what was asked for is done."""
        return True

    def wait(self, stream=None) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""


class Stream(contextlib.nullcontext):
    """The order in which the CPU works anyhow."""

    def __init__(self, *args, **kwargs):
        super().__init__(self)

    def synchronize(self) -> None:
        """Return at once."""

    def wait_stream(self, stream) -> None:
        """Return at once."""

    def wait_event(self, event) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: what was asked for is done."""
        return True

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, a new one if none is given, and return it."""
        event = event or Event()
        event.record()
        return event


class Autocast(torch.amp.autocast_mode.autocast):
    """Autocast to bfloat16 on the CPU where it was asked for on CUDA; float16 is slow there."""

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        if device_type == "cuda":
            device_type, dtype = "cpu", torch.bfloat16 if dtype in (None, torch.float16) else dtype
        super().__init__(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class CudaAutocast(Autocast):
    """torch.cuda.amp.autocast, whose arguments lack the device."""

    def __init__(self, enabled=True, dtype=torch.float16, cache_enabled=True):
        super().__init__("cuda", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class PassingScaler(torch.amp.GradScaler):
    """A gradient scaler that leaves everything as it is: bfloat16 has the range of float32."""

    def __init__(self, *args, **kwargs):
        super().__init__("cpu", enabled=False)


def _random_functions() -> dict[str, Callable]:
    """Let the generator of CUDA be that of the CPU. torch.manual_seed calls these, so they must not call it."""
    generator = torch.default_generator
    return {
        "manual_seed": lambda seed: _discard(generator.manual_seed(int(seed))),
        "manual_seed_all": lambda seed: _discard(generator.manual_seed(int(seed))),
        "seed": lambda: _discard(generator.seed()),
        "seed_all": lambda: _discard(generator.seed()),
        "initial_seed": generator.initial_seed,
        "get_rng_state": lambda device="cuda": generator.get_state(),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state": lambda state, device="cuda": _discard(generator.set_state(state)),
        "set_rng_state_all": lambda states: _discard(generator.set_state(states[0])),
    }


def _always(answer) -> Callable:
    return lambda *args, **kwargs: answer


def _discard(value) -> None:
    return None
