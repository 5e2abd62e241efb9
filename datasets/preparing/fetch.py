"""Fetch an archive, check its hash, unpack it and put its files where the readers look."""

import os
import re
import shutil
from pathlib import Path

from datasets.cache import cache_folder
from datasets.preparing.download import ResumingDownloader
from datasets.preparing.layouts import Layout
from datasets.preparing.unpack import unpack
from utils.errors import UserError

LENGTHS = {"sha256": 64, "md5": 32}


def fetch(
    layout: Layout,
    data_root: Path,
    *,
    url: str | None = None,
    known_hash: str | None = None,
    downloader: ResumingDownloader | None = None,
) -> tuple[Path, str, int]:
    """Fetch a data set into `data_root`. Files that are there already stay as they are.

    Args:
        url: a link, or an archive on this machine; the publisher's link without it.
        known_hash: "sha256:..." or "md5:...", without which any content is accepted.

    Returns:
        the archive, its SHA-256, and the number of files that were added.

    Raises:
        UserError: there is no link, the download fails, the hash is another one, or the archive does not hold this data set.
    """
    link = url or layout.url
    if link is None or not layout.landmarks:
        raise UserError(f"{layout.name}: there is no link that can be fetched without you. {layout.remedy(data_root)}")
    archive, digest = _archive(link, known_hash, downloader)
    staging = data_root / f".unpacking-{layout.name}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        unpack(archive, staging)
        added = _move(_find_root(staging, layout, archive), layout.folder(data_root))
    except OSError as error:
        raise UserError(
            f"{data_root}: cannot be written ({error.strerror or error}); give another --data_root or free space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return archive, digest, added


def downloads_folder() -> Path:
    """Return the folder in the cache that keeps downloads."""
    return cache_folder() / "downloads"


def _archive(link: str, known_hash: str | None, downloader: ResumingDownloader | None) -> tuple[Path, str]:
    """Return the local file of a link and its SHA-256, checked."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    known_hash = _checked_form(known_hash)
    if Path(link).is_file():
        path = Path(link)
        _compare(path, known_hash)
        return path, pooch.file_hash(str(path))
    name = re.sub(r"[^\w.-]", "_", link.partition("?")[0].rstrip("/").rpartition("/")[2]) or "archive"
    folder = downloads_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).is_file() and known_hash is None:
            (folder / name).unlink()  # nothing says that it is what the link has today
        downloader = downloader or ResumingDownloader(folder / f"{name}.part")
        path = Path(pooch.retrieve(link, known_hash, fname=name, path=folder, downloader=downloader))
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); point M2AE_CACHE to another folder"
        ) from error
    except ValueError as error:  # pooch says so where the hash differs
        got = re.findall(r"\b[0-9a-f]{32,64}\b", str(error))
        raise UserError(
            f"{link}: has another hash than {known_hash}"
            + (f" (got {got[-1]})" if got else "")
            + "; nothing was kept. "
            "The file or the hash is not the one that was meant: give the right one, or another mirror"
        ) from error
    return path, pooch.file_hash(str(path))


def _checked_form(known_hash: str | None) -> str | None:
    if known_hash is None:
        return None
    kind, _, value = known_hash.partition(":")
    if kind not in LENGTHS or not re.fullmatch(f"[0-9a-f]{{{LENGTHS[kind]}}}", value.lower()):
        raise UserError(f"--{kind} {value}: is no {kind} hash of {LENGTHS.get(kind, 64)} hexadecimal digits")
    return known_hash.lower()


def _compare(path: Path, known_hash: str | None) -> None:
    import pooch

    if known_hash is not None:
        kind, _, value = known_hash.partition(":")
        got = pooch.file_hash(str(path), alg=kind)
        if got != value:
            raise UserError(f"{path}: has another hash than {known_hash} (got {got}); give the right file or hash")


def _find_root(staging: Path, layout: Layout, archive: Path) -> Path:
    """Return the folder of an unpacked archive that holds the landmarks: archives wrap their content differently."""
    for folder, folders, files in os.walk(staging):
        folders.sort()
        if set(layout.landmarks) & {*folders, *files}:
            return Path(folder)
    inside = sorted(entry.name for entry in staging.iterdir())
    raise UserError(
        f"{archive}: does not look like {layout.name}: no {' or '.join(layout.landmarks)} in it "
        f"(it holds {', '.join(inside[:5]) or 'nothing'})"
    )


def _move(source: Path, target: Path) -> int:
    """Move the files that are not there yet, each by a rename, so that none is ever there in part."""
    added = 0
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
            added += 1
    return added
