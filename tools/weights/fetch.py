"""Fetch published weights by name, to where `--ckpts NAME` finds them."""

import logging
import os
import shlex
from pathlib import Path

from datasets.preparing.download import Patience
from datasets.preparing.sources import checked_hash, obtain, source_of
from tools.weights.names import entry_of
from tools.weights.table import Entry
from utils.errors import UserError
from utils.files import explain_write

_LOG = logging.getLogger("m2ae.weights")


def fetch(
    name: str,
    *,
    url: str | None = None,
    sha256: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    patience: Patience | None = None,
) -> Path:
    """Bring the file of a name to this machine; returns where it is.

    Args:
        url: another link, or a file that was fetched by hand; None = the published address.
        sha256: over the one of the table.
        out: a file or a folder; None = where `resolve` finds the name.
        overwrite: replace a file that is there.

    Raises:
        UserError: the name is unknown, the file cannot be had, is a web page or has another hash; nothing is at its place then.
    """
    entry = entry_of(name)
    target = _target(entry, out)
    stated = f"sha256:{sha256 or entry.sha256}" if sha256 or entry.sha256 else None
    known = checked_hash(stated)
    if target.exists() and not overwrite:
        _LOG.info("%s: is there already; --overwrite fetches it again", target)
        return target
    if entry.note:
        _LOG.info("%s: %s", name, entry.note)
    digest, compared = obtain(
        source_of(url) if url else entry.source,
        target,
        known_hash=known,
        by_hand=f"python -m tools.weights fetch {name} --url FILE{f' --out {shlex.quote(str(out))}' if out else ''}",
        patience=patience,
    )
    who = entry.stated_by if compared == f"sha256:{entry.sha256}" and not sha256 else "yours" if sha256 else "its host"
    _LOG.info(
        "%s: %d bytes, sha256 %s, %s",
        target,
        target.stat().st_size,
        digest,
        f"as stated by {who}" if compared else "which nobody states: compare it with --sha256 if you know better",
    )
    if entry.size and target.stat().st_size != entry.size:
        _LOG.warning("%s: %d bytes are stated", target, entry.size)
    return target


def _target(entry: Entry, out: Path | None) -> Path:
    """Return where a file goes.

    Raises:
        UserError: its folder cannot be made.
    """
    target = entry.place if out is None else out / entry.place.name if out.is_dir() else out
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(13, "no permission", str(target.parent))
    except OSError as error:
        raise UserError(explain_write(target, error)) from error
    return target
