"""Files and folders of data sets, and what to say when they are missing."""

from os.path import isdir, isfile, lexists
from pathlib import Path

from utils.errors import UserError


def require(path: Path, layout: str, kind: str = "folder") -> Path:
    """Return `path` if it is there.

    Raises:
        UserError: naming the path, the layout expected there and the section of the README.
    """
    if not (isdir(path) if kind == "folder" else isfile(path)):
        raise missing(path, layout, kind)
    return path


def missing(path: Path, layout: str, kind: str = "file") -> UserError:
    """Build the error for a missing file or folder."""
    problem = f"is not a {kind}" if lexists(path) else "does not exist"
    return UserError(
        f"{path}: {kind} {problem}. Expected there: {layout}. "
        "Check DATA_PATH, DATA_DIR or ROOT in the data-set YAML, or give --data_root; see README, section Data"
    )
