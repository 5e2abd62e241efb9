"""Open what comes from outside: regular files that fit into memory, text with or without a byte order mark, one message an error."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError, printable

AGAIN = "copy or download it again"
LONGEST_REASON = 160  # characters of the cause in a message
_BLOCK = 1 << 20
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}  # fmt: skip
_REMEDIES = {
    errno.ENOENT: "does not exist; check the path",
    errno.ENOTDIR: "does not exist: a part of its path is a file; check the path",
    errno.EACCES: "cannot be read: no permission; allow it (chmod +r for files, +rx for folders)",
    errno.EPERM: "cannot be read: no permission; allow it (chmod +r for files, +rx for folders)",
    errno.ELOOP: "cannot be read: its links lead in a circle; repair the link",
    errno.EIO: "cannot be read: the disk or the network drive reports an error; try again, or copy the file from its source",
    errno.ESTALE: "cannot be read: the network drive has lost it; open the folder again, or copy the file",
    errno.EMFILE: "cannot be read: too many files are open; raise the limit with ulimit -n",
    errno.ENOMEM: "cannot be read: there is not enough memory; free some",
    errno.ENAMETOOLONG: "cannot be read: the name is too long; shorten it",
    errno.EISDIR: "is a folder, expected a file; name a file in it",
}


def check_file(path: str | Path) -> int:
    """Return the size in bytes of a regular file; nothing is opened, so that a named pipe cannot block.

    Raises:
        UserError: the file is missing, cannot be reached, or is no regular file.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if os.path.islink(path):
            raise UserError(
                f"{printable(path)}: is a link to a file that cannot be reached; repair or remove the link"
            ) from error
        raise UserError(f"{printable(path)}: {explain_read(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise UserError(f"{printable(path)}: is {kind}, expected a regular file; name a file")
    return found.st_size


def explain_read(error: Exception) -> str:
    """Say what an error of the system means for a file that was to be read, and what helps."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return _REMEDIES[error.errno]
    return f"cannot be read ({reason(error)}); check the file and its folder"


def reason(error: BaseException) -> str:
    """Return the first line of an error, shortened, or its kind where it says nothing."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


@contextmanager
def reading(path: str | Path, what: str, remedy: str = AGAIN) -> Iterator[None]:
    """Turn whatever is raised while a file is read into one message that names the file, the cause and a remedy.

    Readers of other people's formats raise anything on damaged bytes, so every exception counts.

    Args:
        what: what the file is read as, such as "a cloud".

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{printable(path)}: cannot be read as {what}: it asks for more memory than there is; {remedy}, or use a smaller one"
        ) from error
    except OSError as error:
        if error.errno in _REMEDIES:
            raise UserError(f"{printable(path)}: {explain_read(error)}") from error
        raise UserError(f"{printable(path)}: cannot be read as {what}: {reason(error)}; {remedy}") from error
    except RecursionError as error:
        raise UserError(f"{printable(path)}: cannot be read as {what}: it is nested too deeply; {remedy}") from error
    except Exception as error:
        raise UserError(f"{printable(path)}: cannot be read as {what}: {reason(error)}; {remedy}") from error


def free_memory() -> int:
    """Return how many bytes of memory are free for this process: of the machine, and of its control group."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        free = 8 << 30  # no Linux: enough for any file of a data set
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(int(limit) - used, 0)) if limit != "max" else free
    except (OSError, ValueError):
        pass
    return free


def check_room(path: str | Path, size: int, what: str = "is") -> None:
    """Refuse a size in bytes that cannot be held in memory: of a file, or of what its header announces.

    Raises:
        UserError: it is larger than the free memory.
    """
    free = free_memory()
    if size > free:
        raise UserError(
            f"{printable(path)}: {what} {size:,} bytes, and {free:,} bytes of memory are free; is it damaged? "
            "Split it, or take fewer points"
        )


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file whole.

    Raises:
        UserError: it cannot be read, or is larger than the free memory.
    """
    size = check_file(path)
    if size > _BLOCK:
        check_room(path, size)
    try:
        with open(path, "rb") as file:
            return file.read(size + _BLOCK)  # a file that grows for ever ends here
    except OSError as error:
        raise UserError(f"{printable(path)}: {explain_read(error)}") from error


def decode(data: bytes, errors: str = "replace") -> str:
    """Decode text: UTF-8 with or without a byte order mark, or UTF-16 with one; line ends become a single line feed."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, errors: str = "replace") -> str:
    """Read a text file, with or without a byte order mark; what is no text becomes U+FFFD.

    Args:
        errors: "strict" refuses what is no text, "surrogateescape" keeps it.

    Raises:
        UserError: it cannot be read.
    """
    data = read_bytes(path)
    with reading(path, "text"):
        return decode(data, errors)


def read_json(path: str | Path, expected: str) -> Any:
    """Read a JSON file.

    Args:
        expected: what it should hold, for messages.

    Raises:
        UserError: it cannot be read, or is no JSON.
    """
    text = read_text(path)
    with reading(path, "JSON", f"expected {expected}; {AGAIN}"):
        return json.loads(text)
