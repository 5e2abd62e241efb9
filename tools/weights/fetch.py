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
from utils.files import explain_write, read_checkpoint, save_tensors

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
    source = source_of(url) if url else entry.source
    by_hand = f"python -m tools.weights fetch {name} --url FILE"
    by_hand += f" --out {shlex.quote(str(out))}" if out else ""
    digest, compared = obtain(
        source, target, known_hash=known, by_hand=f"{by_hand}, which puts it at {target}", patience=patience
    )
    who = "yours" if sha256 else entry.stated_by if entry.sha256 else "its host"
    remark = f"compared with {who}" if compared else "which nobody states: compare it with --sha256 if you know better"
    size = target.stat().st_size
    _LOG.info("%s: %s bytes, sha256 %s, %s", target, f"{size:,}", digest, remark)
    if entry.size and size != entry.size:
        _LOG.warning("%s: %s bytes are stated for %s", target, f"{entry.size:,}", name)
    if entry.via == "hf" and entry.recipe:
        _bring_back(target, {"from": source.link, "sha256": digest})
    return target


def _bring_back(path: Path, provenance: dict[str, str]) -> None:
    """Rewrite a file of torch-pointcloud in the published layout; one of another layout stays as it is."""
    from models.pyg_layout import is_converted, published_layout  # here, because they need torch
    from utils.checkpoints import find_weights

    try:
        weights = find_weights(read_checkpoint(path))
        if is_converted(weights):
            save_tensors(path, published_layout(weights), {"provenance": provenance})
            _LOG.info("%s: keys of torch-pointcloud are brought back to the published ones", path)
    except UserError:
        path.unlink()
        raise


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
