"""Where a result comes from: the command, the versions and the state of the code."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from utils import ROOT
from utils.config.merge import to_dict

FILE = "provenance.yaml"


def record(folder: Path, *, resumed: bool) -> None:
    """Save where a run comes from; one that goes on keeps what it began with, and adds its command.

    Raises:
        UserError: the file cannot be written.
    """
    from utils.files import write_atomic

    known = recorded(folder) if resumed else {}
    entries = provenance()
    if known:
        changed = (
            "" if entries["Git revision"] == known.get("Git revision") else f", revision {entries['Git revision']}"
        )
        entries = {**known, f"Resumed {datetime.now():%Y-%m-%d %H:%M:%S}": entries["Command"] + changed}
    lines = "".join(f"{label}: {' '.join(text.split(chr(10)))}\n" for label, text in entries.items())
    write_atomic(folder / FILE, lambda file: file.write(lines.encode()))


def recorded(folder: Path) -> dict[str, str]:
    """Return label -> text as `record` saved it; nothing where there is no such file."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {label: text for label, mark, text in (line.partition(": ") for line in lines) if mark}


def provenance() -> dict[str, str]:
    """Return where a result comes from, label -> text: this command, the versions, the device."""
    import numpy
    import torch

    return {
        "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "",
        "Git revision": git_revision(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "Platform": f"{platform.system()} {platform.machine()}",
        "Device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "Threads": str(torch.get_num_threads()),
    }


def git_revision() -> str:
    """Return the commit of this code, with "+" where files differ from it; "unknown" outside a repository."""
    if not (ROOT / ".git").exists():
        return "unknown"
    try:
        revision = _git("rev-parse", "--short=12", "HEAD")
        return revision + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def config_hash(config: Any) -> str:
    """Return 12 hexadecimal digits that are equal for equal configurations, whatever the order of their keys."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
