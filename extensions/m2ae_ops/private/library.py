"""The libraries of compiled kernels: in the cache folder, compiled when they are not there yet."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..building import BuildError, cache_folder
from ..building.compile import compile_half
from ..building.recipe import DURATION, recipe
from ..building.torch_files import torch_files

CSRC = Path(__file__).parents[1] / "csrc"
LOCK_TIMEOUT = 1800  # seconds to wait for another process that builds
logger = logging.getLogger("m2ae_ops")


def build(name: str = "cpu", *, architectures: Sequence[str] = ()) -> Path:
    """Return the path of a half of the library, "cpu" or "cuda", compiling it first when it is not in the cache.

    Args:
        name: which half.
        architectures: of the CUDA half, such as "9.0" or "9.0+PTX"; by default $TORCH_CUDA_ARCH_LIST, else those of the
            devices at hand, else all usual ones.

    Raises:
        BuildError: no compiler, or the compiler failed.
    """
    from filelock import Timeout  # comes with PyTorch

    devices = present_devices() if name == "cuda" else ()
    half = recipe(name, CSRC, torch_files(Path(torch.__file__).parent), " ".join(architectures), devices)
    target = cache_folder() / f"ops-{name}-{half.key}" / half.library
    if target.exists():
        return target
    lock = target.parent / "build.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(lock, f"another process builds the {name.upper()} kernels; waiting until they are there"):
            if not target.exists():
                where, how_long = target.parent, DURATION[name]
                logger.warning("compiling the %s kernels into %s (once, %s)", name.upper(), where, how_long)
                compile_half(half, target, cache_folder() / "ops-objects")
    except Timeout as error:
        raise BuildError(f"another process holds {lock} for over {LOCK_TIMEOUT} s") from error
    except OSError as error:
        raise BuildError(f"cannot write to the cache: {error}; set M2AE_CACHE to another folder") from error
    return target


@contextlib.contextmanager
def _alone(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock; who has to wait for it says so."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(waiting)
        lock.acquire(timeout=LOCK_TIMEOUT)
    try:
        yield
    finally:
        lock.release()


def present_devices() -> list[tuple[int, int]]:
    """Return the compute capabilities of the CUDA devices at hand."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_capability(index) for index in range(count)]
