"""What a process inherits and may lack: a home, a name for its user, a choice of matplotlib for pictures on a screen."""

import getpass
import os
import sys
import tempfile
from pathlib import Path


def home() -> Path:
    """Return the user's home, or a folder for temporary files where the user has none, as in containers that run as a number."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError):
        return _fallback()
    return found if found != Path("/") or os.access(found, os.W_OK) else _fallback()


def _fallback() -> Path:
    number = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"m2ae-{number}"


def settle_environment() -> None:
    """Give libraries what they take for granted: call it before a command imports them.

    torch asks for the name of the user, which a container may not have, to name its cache. A notebook hands its choice of matplotlib's
    backend down to programs that it starts, where that backend does not exist.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(home() / ".cache" / "torchinductor"))
        os.environ.setdefault("USER", f"user{os.getuid()}")
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "Agg"
