"""What turns csrc/ into libraries: the files of PyTorch, the compilers, the commands and how they are run.

Nothing in here imports PyTorch or the rest of this package: `extensions/setup.py` uses it where neither can be imported.
"""

import os
import tempfile
from pathlib import Path


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and, where it ran, where the compiler's output is."""


def cache_folder() -> Path:
    """Return the folder of this project's caches: $M2AE_CACHE, or one in the user's cache folder, or else a temporary one."""
    if chosen := os.environ.get("M2AE_CACHE"):
        return Path(chosen).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2ae"
    except RuntimeError:  # a user without a name and a home, as in containers
        return Path(tempfile.gettempdir()) / f"m2ae-{os.getuid()}"
