"""Where a file is published, and how it is brought here: HTTPS, Hugging Face, Google Drive, a DOI, or by hand."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from datasets.preparing.download import DISK, TIMEOUT, Patience, ResumingDownloader
from utils.errors import UserError, on_terminal
from utils.files import explain_write
from utils.reading import reason

DIGITS = {"sha256": 64, "md5": 32}  # of a hash
_DRIVE = re.compile(r"https?://(?:drive|docs)\.google\.com/(?:uc\?|open\?|file/(?:u/\d+/)?d/)(?:.*?\bid=)?([\w-]{20,})")
_HUB = re.compile(r"https?://huggingface\.co/(datasets/)?([^/]+/[^/]+)/(?:resolve|blob)/([^/]+)/([^?#]+)")


@dataclass(frozen=True)
class Source:
    """A published file.

    Args:
        via: "https", "hf" (Hugging Face), "drive" (Google Drive), "doi", "page" (a person has to get it there), or "file" (here).
        address: link, repository, id, DOI, page or path, by `via`.
        file: its name in a repository or record.
        revision: of a repository.
        dataset: the repository is one of data sets.
    """

    via: str
    address: str
    file: str = ""
    revision: str = ""
    dataset: bool = False

    @property
    def link(self) -> str:
        """Return the address as a browser takes it."""
        if self.via == "drive":
            return f"https://drive.google.com/uc?id={self.address}"
        if self.via == "hf":
            kind = "datasets/" if self.dataset else ""
            return f"https://huggingface.co/{kind}{self.address}/resolve/{self.revision or 'main'}/{quote(self.file)}"
        return f"https://doi.org/{self.address}" if self.via == "doi" else self.address


def source_of(text: str) -> Source:
    """Return the source that a `--url` names: a file on this machine, or a link of any kind."""
    if Path(text).is_file():
        return Source("file", text)
    if drive := _DRIVE.match(text):
        return Source("drive", drive[1])
    if hub := _HUB.match(text):
        return Source("hf", hub[2], file=unquote(hub[4]), revision=hub[3], dataset=bool(hub[1]))
    if text.startswith("doi:"):
        record, _, file = text.removeprefix("doi:").rpartition("/")
        return Source("doi", record, file=file)
    return Source("https", text)


def checked_hash(known_hash: str | None) -> str | None:
    """Return "sha256:..." or "md5:..." in lower case; None stays None.

    Raises:
        UserError: it is no such hash.
    """
    if known_hash is None:
        return None
    kind, _, value = known_hash.partition(":")
    if not re.fullmatch(f"[0-9a-f]{{{DIGITS[kind]}}}", value.lower()):
        raise UserError(f"--{kind} {value}: is no {kind} hash of {DIGITS[kind]} hexadecimal digits")
    return known_hash.lower()


def compare(path: Path, known_hash: str | None) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UserError: it has another hash than the known one.
    """
    import pooch

    kind, _, value = (known_hash or "").partition(":")
    if known_hash and (got := pooch.file_hash(str(path), alg=kind)) != value:
        raise UserError(f"{path}: has another hash than {known_hash} (got {got}); give the right file or hash")
    return pooch.file_hash(str(path))


def obtain(
    source: Source, target: Path, *, known_hash: str | None = None, by_hand: str = "", patience: Patience | None = None
) -> tuple[str, str]:
    """Bring a published file to `target`, whole and checked or not at all; a cut download goes on where it was cut.

    Args:
        known_hash: as `checked_hash` returns it; a hash that the host states is compared without it.
        by_hand: command that takes a file fetched elsewhere, for messages.

    Returns:
        its SHA-256, and the hash that it was compared with, "" where nobody states one.

    Raises:
        UserError: it cannot be had, is a web page, or has another hash: then it is kept with the ending .other-hash.
    """
    arrived = target.with_name(f"{target.name}.arrived")
    with _explained(source, target, by_hand):
        target.parent.mkdir(parents=True, exist_ok=True)
        stated = _TRANSPORTS[source.via](source, arrived, patience or Patience())
        known = known_hash or stated
        _refuse_pages(source, arrived)
        try:
            digest = compare(arrived, known)
        except UserError as error:
            aside = target.with_name(f"{target.name}.other-hash")
            os.replace(arrived, aside)
            got = re.findall(r"got ([0-9a-f]+)", str(error))[-1]
            raise UserError(
                f"{source.link}: has another hash than {known} (got {got}); it was not taken, and is kept as {aside}. The file or the "
                "hash is not the one that was meant: give the right hash, or another mirror"
            ) from error
        os.replace(arrived, target)
    return digest, known or ""


def _https(source: Source, arrived: Path, patience: Patience) -> str:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    arrived.unlink(missing_ok=True)  # nothing says that it is what the link has today
    part = arrived.with_name(f"{arrived.stem}.part")
    downloader = ResumingDownloader(part, patience)
    pooch.retrieve(source.address, None, fname=arrived.name, path=arrived.parent, downloader=downloader)
    return ""


def _hub(source: Source, arrived: Path, patience: Patience) -> str:
    """Fetch a file of a repository on Hugging Face, whose SHA-256 the host states; HF_ENDPOINT names another host."""
    hub = _library("huggingface_hub", "Hugging Face")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    kind = "dataset" if source.dataset else None
    url = hub.hf_hub_url(
        source.address, source.file, repo_type=kind, revision=source.revision or None, endpoint=endpoint
    )
    stated = hub.get_hf_file_metadata(url, token=False, endpoint=endpoint)
    if stated.commit_hash is None:
        raise UserError(f"{url}: the answer is not one of Hugging Face; does a proxy or a login page answer instead?")
    _https(Source("https", url), arrived, patience)
    return f"sha256:{stated.etag}" if re.fullmatch("[0-9a-f]{64}", stated.etag or "") else ""


def _drive(source: Source, arrived: Path, patience: Patience) -> str:
    gdown = _library("gdown", "Google Drive")
    arrived.unlink(missing_ok=True)
    begun = bool(_parts(arrived))
    given = {"id": source.address, "output": str(arrived), "resume": True, "use_cookies": False, "timeout": TIMEOUT}
    given |= {"quiet": not on_terminal(), "retries": patience.attempts - 1}
    try:
        gdown.download(**given)
    except gdown.exceptions.FileURLRetrievalError as error:
        raise UserError(
            f"{source.link}: Google Drive gives no file: it is not shared, too many have asked for it today, or a proxy answers "
            f"instead ({_last_words(error)}); open the link in a browser"
        ) from error
    except gdown.exceptions.DownloadError as error:
        if not (begun and "byte range" in str(error)):
            raise OSError(_last_words(error)) from error
        for part in _parts(arrived):  # of another version of the file, or this host cannot go on
            part.unlink()
        gdown.download(**given)
    return ""


def _parts(arrived: Path) -> list[Path]:
    """Return what gdown left of earlier attempts."""
    return [path for path in arrived.parent.glob(f"{arrived.name}*.part") if len(path.name) == len(arrived.name) + 13]


def _last_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return reason(ValueError(" ".join(lines[1:2] or lines[:1])))


def _doi(source: Source, arrived: Path, patience: Patience) -> str:
    """Fetch a file of a record that a DOI names, such as one of Zenodo, which states its MD5."""
    import pooch
    from pooch.downloaders import doi_to_repository

    record = doi_to_repository(source.address, timeout=TIMEOUT)
    book = pooch.create(path=arrived.parent, base_url=f"doi:{source.address}")
    record.populate_registry(book)
    if source.file not in book.registry:
        raise UserError(
            f"{source.link}: holds no {source.file}, but {', '.join(sorted(book.registry)[:8]) or 'nothing'}"
        )
    _https(Source("https", record.download_url(source.file)), arrived, patience)
    return book.registry[source.file]


def _page(source: Source, arrived: Path, patience: Patience) -> str:
    raise UserError(f"{source.link}: a person has to get {source.file or 'the file'} there, in a browser")


def _copy(source: Source, arrived: Path, patience: Patience) -> str:
    import shutil

    shutil.copyfile(source.address, arrived)
    return ""


_TRANSPORTS: dict[str, Callable[[Source, Path, Patience], str]] = {
    "https": _https,
    "hf": _hub,
    "drive": _drive,
    "doi": _doi,
    "page": _page,
    "file": _copy,
}


def _library(name: str, host: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{host} needs the package {name}; install it: pip install {name}") from error


def _refuse_pages(source: Source, arrived: Path) -> None:
    with arrived.open("rb") as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        arrived.unlink()
        raise UserError(
            f"{source.link}: answers with a web page, not with a file; does a proxy or a login page answer instead?"
        )


@contextmanager
def _explained(source: Source, target: Path, by_hand: str) -> Iterator[None]:
    """Turn what libraries raise into one message that says what a person can do instead."""
    elsewhere = f"get {source.link} in a browser, on another machine if this one has no network, and give the file: "
    hint = f". By hand: {'give the file: ' if source.via == 'page' else elsewhere}{by_hand}"
    if not by_hand or source.via == "file":
        hint = ""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}{hint}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            raise UserError(explain_write(target, error)) from error
        raise UserError(f"{source.link}: cannot be fetched ({type(error).__name__}: {reason(error)}){hint}") from error
