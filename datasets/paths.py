"""Paths in data-set configurations: `--data_root` and messages about missing files."""

from dataclasses import replace
from pathlib import Path

from utils.errors import UserError

PATH_KEYS = ("DATA_PATH", "PC_PATH", "DATA_DIR", "ROOT")


def with_root(config, root: str | None):
    """Return `config` (a data-set dataclass or mapping) with a leading `data/` of its path keys replaced by `root`."""
    if not root:
        return config
    get = config.get if isinstance(config, dict) else lambda key, default: getattr(config, key, default)
    changed = {}
    for key in PATH_KEYS:
        path = get(key, "")
        parts = Path(path).parts if path else ()
        if parts and parts[0] == "data":
            changed[key] = str(Path(root, *parts[1:]))
    return {**config, **changed} if isinstance(config, dict) else replace(config, **changed)


def require(path: Path, layout: str, kind: str = "folder") -> Path:
    """Return `path` if it is there.

    Raises:
        UserError: naming the path, the layout expected there and the section of the README.
    """
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise missing(path, layout, kind)
    return path


def missing(path: Path, layout: str, kind: str = "file") -> UserError:
    """Build the error for a missing file or folder."""
    problem = f"is not a {kind}" if path.exists() else "does not exist"
    return UserError(
        f"{path}: {kind} {problem}. Expected there: {layout}. "
        "Check DATA_PATH, DATA_DIR or ROOT in the data-set YAML, or give --data_root; see README, section Data"
    )
