"""What a run shows a person: `report.html`, one self-contained page, and `gallery.png`.

A method adds to the page by passing `sections`: each is a `Section(title, body)` whose body is HTML that the method has
escaped, images as `data:` addresses. `tools/report` has the parts: `markup.table`, `markup.cards`,
`markup.escape`, `charts.line_chart` and `confusion.confusion_section`. Values per point (parts, complexity, saliency)
need no section of their own: they are `values` of a `GalleryItem`. The page has one gallery.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from tools.report import overview
from tools.report.clouds import GalleryItem, Row, prepare_all
from tools.report.confusion import confusion_section
from tools.report.figure import gallery_figure
from tools.report.markup import Section, asset, escape, facts, portable
from tools.report.runlog import RunLog, counted, read_metrics
from tools.report.selection import selection_section
from tools.report.viewer import gallery_section
from utils.errors import UserError
from utils.files import write_atomic
from utils.provenance import provenance as versions
from utils.provenance import recorded

__all__ = ["GalleryItem", "Section", "write_report"]

MOST_DRAWN = 24  # rows of the picture of a further gallery


def write_report(
    folder: str | Path,
    *,
    config: object,
    gallery: Sequence[GalleryItem] = (),
    confusion: tuple[np.ndarray, Sequence[str] | None] | None = None,
    summary: Mapping[str, object] | None = None,
    title: str | None = None,
    provenance: Mapping[str, object] | None = None,
    sections: Sequence[Section] = (),
    galleries: Mapping[str, Sequence[GalleryItem]] | None = None,
    gallery_about: tuple[str, str] = ("Gallery", ""),
) -> Path:
    """Write `report.html`, and `gallery.png` if there is a gallery, into `folder`; return the path of the page.

    The curves come from `metrics.jsonl` in `folder`, as far as it got: a missing file, a cut last line, absent keys and
    numbers that are not finite leave gaps. Both files are written to a temporary name and renamed.

    Args:
        config: the resolved configuration, a dataclass, a mapping or YAML text.
        gallery: rows of clouds, in order.
        confusion: counts (n, n), rows true and columns predicted, and the n class names.
        summary: label -> text, shown first among the cards on top.
        provenance: label -> text (command, device ...), shown with the versions and the git revision found here.
        sections: further sections, after the gallery and the confusion matrix.
        galleries: further rows of the gallery by name; each name also has a picture, `<name>.png`, of its first MOST_DRAWN rows.
        gallery_about: title of the gallery and a sentence about it.

    Raises:
        UserError: if `folder` or a file in it cannot be written.
        ValueError: if clouds, values or counts do not have the shapes promised.
    """
    folder = Path(folder)
    items = {"gallery": gallery, **(galleries or {})}
    rows = prepare_all([item for one in items.values() for item in one])
    left = iter(rows)
    pictures = {name: [next(left) for _ in one] for name, one in items.items()}
    log = read_metrics(folder / "metrics.jsonl")
    settings = _plain(config)
    seed = settings.get("seed") if isinstance(settings, dict) else None
    text = page(
        title or folder.name or "Report",
        subtitle=_subtitle(settings),
        cards=overview.summary_cards(log, seed=seed, summary={k: portable(v) for k, v in (summary or {}).items()}),
        sections=[
            *overview_sections(log),
            *_shown(rows, gallery_about, confusion),
            *sections,
            *filter(
                None, (overview.timing_section(log), _configuration(settings), _provenance(log, folder, provenance))
            ),
        ],
        script=asset("table.js"),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"report: cannot create the folder {folder}: {reason}; choose another one") from error
    write_atomic(folder / "report.html", lambda file: file.write(text.encode("utf-8")))
    for name, picture in pictures.items():
        if picture:
            _write_gallery(folder / f"{name}.png", picture if name == "gallery" else picture[:MOST_DRAWN])
    return folder / "report.html"


def overview_sections(log: RunLog) -> list[Section]:
    """Return what the rows of a run give: curves and tables of its evaluations."""
    if not (log.steps or log.epochs or log.svm or log.val or log.parts or log.selected):
        return []
    tables = (overview.parts_section(log), overview.svm_section(log), overview.accuracy_section(log))
    return [overview.curves_section(log), *filter(None, (selection_section(log), *tables))]


def _shown(rows: list[Row], about: tuple[str, str], confusion: tuple | None) -> list[Section]:
    """Return the gallery and the confusion matrix, whose cells show clouds of the gallery."""
    title, lead = about
    found = [gallery_section(rows, title=title, lead=lead)] if rows else []
    if confusion is not None:
        links: dict[tuple[str, str], list[str]] = {}
        for index, row in enumerate(rows):
            if row.pair is not None:
                links.setdefault(row.pair, []).append(f"cloud-{index}")
        found.append(confusion_section(*confusion, links=links))
    return found


def page(title: str, *, subtitle: str, cards: str, sections: list[Section], script: str = "") -> str:
    """Fill the template in one pass, so that braces inside a value are never taken for a slot; `script` runs after the viewer."""
    values = {
        "title": escape(title),
        "subtitle": escape(subtitle),
        "cards": cards,
        "style": asset("page.css"),
        "scripts": asset("charts.js") + asset("balls.js") + asset("viewer.js") + asset("confusion.js") + script,
        "navigation": "".join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections)),
        "sections": "\n".join(section.html(f"s{i}") for i, section in enumerate(sections)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: values[slot.group(1)], asset("page.html"))


def _plain(value: object) -> object:
    """Turn dataclasses, tuples, paths and the like into what YAML writes plainly."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool):
        return value
    # YAML writes the plain types only, not NumPy's float64 or an integer enumeration, which are subclasses of them.
    return next((plain(value) for plain in (int, float) if isinstance(value, plain)), str(value))


def _subtitle(settings: object) -> str:
    """Name the method, if the configuration does."""
    model = settings.get("model") if isinstance(settings, dict) else None
    return str(model["NAME"]) if isinstance(model, dict) and model.get("NAME") else ""


def _configuration(settings: object) -> Section:
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    text = portable(text)
    body = f'<details class="panel"><summary>Resolved configuration (YAML)</summary><pre>{escape(text)}</pre></details>'
    return Section("Configuration", body)


def _provenance(log: RunLog, folder: Path, provenance: Mapping[str, object] | None) -> Section:
    # What the caller says wins over what is found out here.
    entries = {**(recorded(folder) or versions()), **(provenance or {})}
    rows = [counted(log), f"{log.skipped:,} unreadable lines left out" if log.skipped else ""]
    if any(rows):
        entries["metrics.jsonl"] = "; ".join(filter(None, rows))
    return Section("Provenance", facts({label: portable(text) for label, text in entries.items()}))


def _write_gallery(path: Path, rows: list[Row]) -> None:
    try:
        figure = gallery_figure(rows)
    except ImportError as error:
        logging.getLogger(__name__).warning("%s is not written: %s; install matplotlib", path.name, error)
        return
    write_atomic(path, lambda file: figure.savefig(file, format="png"))
