"""Fetch an archive, check its hash, unpack it and put its files where the readers look."""

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from datasets.cache import cache_folder
from datasets.preparing.download import Patience
from datasets.preparing.layouts import Layout
from datasets.preparing.mirrors import choose, listed, mirrors
from datasets.preparing.sources import Source, checked_hash, compare, obtain, source_of
from datasets.preparing.unpack import unpack
from utils.errors import UserError


@dataclass(frozen=True)
class Order:
    """What to fetch from where.

    Args:
        url: a link, or an archive on this machine; None = `mirror`.
        mirror: name of a place in `mirrors.yaml`; None = the official one.
        known_hash: "sha256:..." or "md5:..."; None = the one that the table or the host states, if any.
    """

    url: str | None = None
    mirror: str | None = None
    known_hash: str | None = None
    patience: Patience | None = None


@dataclass(frozen=True)
class Archive:
    """An archive on this machine."""

    path: Path
    sha256: str
    compared: str  # the hash that it was compared with, "" where there is none
    stated_by: str = ""  # who states that hash, where it is from the table


def fetch(layout: Layout, data_root: Path, order: Order) -> tuple[Archive, int]:
    """Fetch a data set into `data_root`. Files that are there already stay as they are.

    Returns:
        the archive, and the number of files that were added.

    Raises:
        UserError: there is no link, the download fails, the hash is another one, or the archive does not hold this data set.
    """
    name = layout.name if layout.name in mirrors() or not layout.root else layout.root
    if not layout.landmarks or (order.url is None and choose(name, order.mirror) is None):
        places = listed(name)
        raise UserError(
            f"{layout.name}: there is no link that can be fetched without you. {layout.remedy(data_root)}"
            + (f". Places that are taken only when asked for by name:\n{places}" if places else "")
        )
    archive = fetch_archive(name, order)
    staging = data_root / f".unpacking-{layout.name}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        unpack(archive.path, staging)
        added = _move(_find_root(staging, layout, archive.path), layout.folder(data_root))
    except OSError as error:
        raise UserError(
            f"{data_root}: cannot be written ({error.strerror or error}); give another --data_root or free space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return archive, added


def downloads_folder() -> Path:
    """Return the folder in the cache that keeps downloads."""
    return cache_folder() / "downloads"


def fetch_archive(name: str, order: Order) -> Archive:
    """Bring the archive of a data set to this machine, and check it; one that was fetched before is taken where its hash is known.

    Raises:
        UserError: as `sources.obtain`, or the set is unknown.
    """
    mirror = choose(name, order.mirror) if order.url is None else None
    if order.url is None and mirror is None:
        raise UserError(f"{name}: has no official link; places that are taken when asked for by name:\n{listed(name)}")
    source = mirror.source if mirror else source_of(order.url)
    known = checked_hash(order.known_hash) or (mirror.known_hash if mirror else None)
    stated_by = mirror.stated_by if mirror and not order.known_hash else ""
    if source.via == "file":
        return Archive(Path(source.address), compare(Path(source.address), known), known or "")
    target = downloads_folder() / _file_name(source)
    if known and target.is_file():
        return Archive(target, compare(target, known), known, stated_by)
    by_hand = f"python -m datasets.prepare fetch {shlex.quote(name)} --url FILE"
    digest, compared = obtain(source, target, known_hash=known, by_hand=by_hand, patience=order.patience)
    return Archive(target, digest, compared, stated_by or ("its host" if compared and not known else ""))


def _file_name(source: Source) -> str:
    last = source.file or source.address.partition("?")[0].rstrip("/")
    return re.sub(r"[^\w.-]", "_", last.rpartition("/")[2]) or "archive"


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
