"""Seeds and generators: what a step draws depends on (seed, epoch, step, stream) alone."""

import hashlib
import os
import random

import numpy as np
import torch


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed the global generators of Python, NumPy and torch.

    Our own code draws from `generator`; the global ones are for library code that knows nothing else.

    Args:
        deterministic: ask torch for deterministic kernels; where there is none, torch warns and goes on.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS reads this when its first handle is created, so it must be set before any CUDA work.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def step_seed(seed: int, epoch: int, step: int, stream: str) -> int:
    """Hash (seed, epoch, step, stream) to 63 bits: the same in every process, Python version and on every platform.

    `stream` names what is drawn ("mask", "order", ...), so that two uses in one step are independent.
    """
    text = f"{int(seed)}/{int(epoch)}/{int(step)}/{stream}"
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


def generator(seed: int, epoch: int, step: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for what `stream` names in one step.

    Draw on the CPU where the numbers must not depend on the device.
    """
    return torch.Generator(device).manual_seed(step_seed(seed, epoch, step, stream))
