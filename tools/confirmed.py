"""Which accelerators a run on a device has confirmed; `python -m tools.doctor` writes it down, training reads it.

What nobody has run on a kind of device is not used there by itself. The file is in the cache folder; an entry holds for
the name of the device, the version of PyTorch, and the code of the accelerators.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from extensions.m2ae_ops.building import cache_folder
from utils.files import write_atomic

GRAPH, SIDE_STREAM = "CUDA graph", "side stream"
CODE = Path(__file__).with_name("accelerate.py")


def is_confirmed(name: str, device: torch.device) -> bool:
    """Return whether an accelerator was confirmed on a device of this kind, with these versions."""
    return name in _read().get(_key(device), [])


def confirm(names: Iterable[str], device: torch.device) -> None:
    """Write down which accelerators a run on the device has confirmed, in place of what was written before.

    Raises:
        OSError: the cache folder cannot be written.
    """
    entries = _read() | {_key(device): sorted(names)}
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_file(), lambda file: file.write((json.dumps(entries, indent=1) + "\n").encode()))


def _file() -> Path:
    return cache_folder() / "confirmed.json"


def _read() -> dict[str, list[str]]:
    try:
        return dict(json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError):  # nothing was written, or by something else
        return {}


def _key(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    code = hashlib.sha256(CODE.read_bytes()).hexdigest()[:12]
    return f"{name}, PyTorch {torch.__version__}, accelerate.py {code}"
