"""Unpack zip and tar archives from strangers: nothing leaves the folder, no links, no devices, no more than the disk holds."""

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from datasets.preparing.progress import Progress
from utils.errors import UserError
from utils.reading import check_file, reason

RESERVE = 1 << 28  # bytes that stay free on the disk

Member = tuple[str, int, Callable[[], BinaryIO]]  # path with slashes, bytes, how to open it


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack the files of an archive below `folder`, which is created; returns their paths. What packers of macOS add is left out.

    Raises:
        UserError: it is no archive, damaged, larger than the free disk, or holds a path or link that leads elsewhere.
    """
    check_file(archive)
    with _whole(archive):
        zipped, tarred = zipfile.is_zipfile(archive), tarfile.is_tarfile(archive)
    if zipped:
        with _whole(archive):
            file = zipfile.ZipFile(archive)
            members = list(_zip_members(archive, file))
    elif tarred:
        with _whole(archive):
            file = tarfile.open(archive)  # noqa: SIM115  closed below
            members = list(_tar_members(archive, file))
    else:
        raise UserError(f"{archive}: is neither a zip nor a tar archive; is it the file that the link promised?")
    with file:
        return _write(archive, folder, members)


@contextmanager
def _whole(archive: Path) -> Iterator[None]:
    """Turn whatever a damaged archive leads its reader to, errors of the system among it, into one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{archive}: cannot be unpacked ({reason(error)}); download it again") from error


def _zip_members(archive: Path, file: zipfile.ZipFile) -> Iterator[Member]:
    for info in file.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _unsafe(archive, info.filename, "is a link")
        if not info.is_dir():
            yield _safe(archive, info.filename), info.file_size, lambda info=info: file.open(info)


def _tar_members(archive: Path, file: tarfile.TarFile) -> Iterator[Member]:
    for info in file:
        if info.isdir():
            continue
        if not info.isreg():
            raise _unsafe(archive, info.name, "is a link or a device")
        yield _safe(archive, info.name), info.size, lambda info=info: file.extractfile(info)


def _safe(archive: Path, name: str) -> str:
    """Return a member's path with slashes; a backslash separates folders on Windows, so it does here."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or not path.parts:
        raise _unsafe(archive, name, "leads out of the folder")
    return path.as_posix()


def _unsafe(archive: Path, name: str, why: str) -> UserError:
    return UserError(
        f"{archive}: {name!r} {why}, which no data set needs; nothing was unpacked. Do not use this archive"
    )


def _write(archive: Path, folder: Path, members: list[Member]) -> list[str]:
    members = [
        member
        for member in members
        if "__MACOSX" not in member[0] and not PurePosixPath(member[0]).name.startswith("._")
    ]
    total = sum(size for _, size, _ in members)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total + RESERVE > free:
        raise UserError(
            f"{archive}: takes {total:,} bytes unpacked, but {free:,} are free on the disk of {folder}; free space"
        )
    with Progress(len(members), f"unpack {archive.name}", unit="files") as progress:
        for name, size, opened in members:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with _whole(archive):
                source = opened()
            with source, path.open("wb") as file:
                _copy(archive, name, source, file, size)
            progress.update()
    return [name for name, _, _ in members]


def _copy(archive: Path, name: str, source: BinaryIO, file: BinaryIO, size: int) -> None:
    """Copy at most the size that the archive announced, on which the disk was measured."""
    left = size
    while True:
        with _whole(archive):
            block = source.read(min(1 << 20, left + 1))
        if not block:
            break
        left -= len(block)
        if left < 0:
            raise _unsafe(archive, name, "is larger than announced")
        file.write(block)
    if left:
        raise UserError(f"{archive}: cannot be unpacked ({name} is cut short); download it again")
