"""Checkpoints as safetensors files: the weights as tensors, and in the header, as JSON, what a run says of them.

Metadata of the header: "format" is "m2ae"; "config", "epoch", "metrics", "best_metrics" and "provenance" are JSON, as far as a checkpoint
has them; "sha256" is the digest of the tensors. Files of other programs are read as what they are, a bare state dict.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.reading import reading, reason

FORMAT = "m2ae"
ENTRIES = ("config", "epoch", "metrics", "best_metrics", "provenance")
LARGEST_HALF = torch.finfo(torch.float16).max


def pack_tensors(path: str | Path, weights: Mapping[str, Tensor], entries: Mapping[str, Any], *, half: bool) -> bytes:
    """Return the safetensors file of weights and what is known of them.

    Args:
        path: of the file, for messages.
        entries: plain data by the names of `ENTRIES`; others are left out.
        half: store matrices and kernels in float16. Vectors, such as biases and statistics, stay as they are.

    Raises:
        UserError: a value is too large for float16.
    """
    from safetensors.torch import save

    stored = {key: _stored(path, key, value, half=half) for key, value in weights.items()}
    metadata = {name: json.dumps(entries[name]) for name in ENTRIES if name in entries}
    return _ordered(save(stored, {"format": FORMAT, "sha256": _digest(stored), **metadata}))


def _ordered(data: bytes) -> bytes:
    """Return a file with the entries of its header in one order: the library's differs from run to run, and so would hashes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file: ours as a checkpoint, `{"base_model": weights, "config": ..., ...}`, others as a state dict.

    Weights of ours that are stored in float16 come as float32.

    Raises:
        UserError: the file is cut short or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except Exception as error:  # the library meets damaged bytes with its own error, or with any other
        raise UserError(
            f"{path}: is damaged or no safetensors file ({reason(error)}); copy or download it again"
        ) from error
    if metadata.get("format") != FORMAT:
        return weights
    if metadata.get("sha256", "") != _digest(weights):
        raise UserError(f"{path}: is damaged: the checksum of its tensors differs; copy or download it again")
    with reading(path, "a checkpoint"):
        entries = {name: json.loads(metadata[name]) for name in ENTRIES if name in metadata}
    whole = {key: value.float() if value.dtype == torch.float16 else value for key, value in weights.items()}
    return {"base_model": whole, **entries}


def _stored(path: str | Path, key: str, value: Tensor, *, half: bool) -> Tensor:
    value = value.detach().cpu()
    if half and value.is_floating_point() and value.dim() > 1:
        if value.abs().max() > LARGEST_HALF:
            raise UserError(
                f"{path}: the tensor {key} has values above {LARGEST_HALF:.0f}, the largest of float16; leave out --half"
            )
        return value.half().contiguous()
    return value.contiguous().clone()  # the format refuses tensors that share memory


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
