"""Download a file over HTTP and go on where an earlier attempt was cut, as a downloader of pooch."""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets.preparing.progress import Progress
from utils.errors import UserError
from utils.files import explain_write

BLOCK = 1 << 16
TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
LATER = {408, 425, 429, 500, 502, 503, 504}  # states that pass
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR)
FINAL = {401: "needs a login", 403: "is forbidden", 404: "does not exist", 410: "is gone"}


@dataclass(frozen=True)
class Patience:
    """How long a download is tried.

    Args:
        attempts: in one call, without a byte in between; each that brought something counts as the first.
        wait: seconds before the second attempt, twice as long before each further one.
    """

    attempts: int = 5
    wait: float = 1.0


class ResumingDownloader:
    """Fetch a URL into `part`, which outlives a cut connection and this process; pooch's own downloader begins anew.

    Next to the part is what the server called that version of the file. If it has another one by then, or cannot send a range, the
    download begins anew.

    Args:
        part: where the unfinished file is kept.
    """

    def __init__(self, part: Path, patience: Patience | None = None):
        self.part, self.patience = part, patience or Patience()
        self._note = part.with_name(part.name + ".json")

    def __call__(self, url: str, output_file: str, pooch=None, check_only: bool = False) -> None:
        """Download `url` whole and move it to `output_file`.

        Raises:
            UserError: the server refuses, the disk is full, or the connection was cut more often than the patience allows.
        """
        failures = 0
        while True:
            before = self._size()
            try:
                self._attempt(url)
                break
            except (OSError, EOFError) as error:  # the errors of requests are OSErrors, without a number
                if getattr(error, "errno", None) in DISK:
                    raise UserError(explain_write(self.part, error)) from error
                failures = 1 if self._size() > before else failures + 1
                if failures >= self.patience.attempts:
                    raise UserError(
                        f"{url}: the connection failed after {self._size():,} bytes ({error}); call it again, it goes on from there, "
                        "or give another mirror with --url"
                    ) from error
                time.sleep(self.patience.wait * 2 ** (failures - 1))
        os.replace(self.part, output_file)
        self._note.unlink(missing_ok=True)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self, url: str) -> None:
        have, version = self._size(), self._version(url)
        if have and not version:
            have = 0  # nobody can say whether the server still has the same file
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        with _get(url, headers) as answer:
            if answer.status_code == 416:  # nothing is left to send, or the file is another one
                if answer.headers.get("Content-Range", "") == f"bytes */{have}":
                    return
                self.part.unlink()
                raise EOFError("the server has another file than before")
            if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                have = 0
            self._note.write_text(json.dumps({"url": url, "version": _version_of(answer.headers)}), encoding="utf-8")
            self._store(answer, have)

    def _version(self, url: str) -> str:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return note["version"] if note["url"] == url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _store(self, answer, have: int) -> None:
        length = int(answer.headers.get("Content-Length", 0))
        whole = have + length
        free = shutil.disk_usage(self.part.parent).free
        if length > free:
            raise OSError(errno.ENOSPC, f"{length:,} bytes are to come, {free:,} are free")
        with (
            self.part.open("r+b" if have else "wb") as file,
            Progress(whole, self.part.stem, done=have, unit="B") as progress,
        ):
            file.seek(have)
            for block in _blocks(answer.raw):
                file.write(block)
                progress.update(len(block))
        if length and self._size() < whole:
            raise EOFError(f"{self._size():,} of {whole:,} bytes arrived")


def _blocks(raw) -> Iterator[bytes]:
    """Yield what arrives, to the last byte before a cut: requests itself would drop the block that the cut falls into."""
    from urllib3.exceptions import HTTPError

    raw.enforce_content_length = False  # the caller compares the length
    try:
        while block := raw.read(BLOCK, decode_content=False):
            yield block
    except HTTPError as error:
        raise EOFError(str(error)) from error


def _version_of(headers) -> str:
    """Return what identifies this version of a file: a strong ETag, else its date."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


@contextmanager
def _get(url: str, headers: dict) -> Iterator:
    """Open `url`; an answer that no repetition changes is a UserError, one that passes an OSError."""
    import requests

    try:
        answer = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except (
        requests.exceptions.InvalidSchema,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise UserError(
            f"--url {url}: is no link that can be fetched ({error}); give http:// or https://, or a file on this machine"
        ) from error
    with answer:
        status = answer.status_code
        if status in LATER:
            raise OSError(f"HTTP {status} {answer.reason}")
        if status >= 400 and status != 416:
            raise UserError(
                f"{url}: {FINAL.get(status, 'is refused')} (HTTP {status} {answer.reason}); give another mirror with --url"
            )
        if status < 400 and re.match("text/html", answer.headers.get("Content-Type", "")):
            raise UserError(
                f"{url}: answers with a web page, not with a file; open it in a browser, download the file, and give it as --url FILE"
            )
        yield answer
