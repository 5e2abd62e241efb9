"""Small parts of HTML that sections are built from. Every text that comes from outside goes through `escape`."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.environment import home

MISSING = "\N{EN DASH}"
LONG = 22  # characters of a card that are written smaller


@dataclass(frozen=True)
class Section:
    """One section of the report: `title` is plain text, `body` is HTML that the section has escaped itself."""

    title: str
    body: str
    lead: str = ""  # one plain sentence under the title

    def html(self, anchor: str) -> str:
        """Return the section as HTML."""
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        return f'<section id="{anchor}"><h2>{escape(self.title)}</h2>{lead}{self.body}</section>'


class Html(str):
    """Text that is HTML already: `escape` leaves it as it is."""


def escape(text: object) -> str:
    """Return `text` safe inside elements and quoted attributes."""
    return text if isinstance(text, Html) else html.escape(str(text), quote=True)


def portable(text: object) -> str:
    """Return a text without the folders of this machine: paths become relative to the working directory, or to `~`."""
    shown = str(text)
    for folder, short_form in ((Path.cwd(), ""), (home(), "~/")):
        if len(folder.parts) > 1:  # not the root
            shown = shown.replace(f"{folder}/", short_form)
    return shown


def asset(name: str) -> str:
    """Return a template, style sheet or script that is next to this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def embed_json(data: object, *, element_id: str | None = None, css_class: str | None = None) -> str:
    """Return a data block for a script to parse; no text in it can close the element.

    Raises:
        ValueError: if `data` holds NaN or infinity, which browsers do not parse.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    identity = f' id="{element_id}"' if element_id else ""
    identity += f' class="{css_class}"' if css_class else ""
    return f'<script type="application/json"{identity}>{text}</script>'


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of (label, value, remark) cards."""
    boxes = (
        f'<div class="card"><dt>{escape(label)}</dt><dd{_size(value)}>{_breakable(value)}'
        + (f"<small>{escape(remark)}</small>" if remark else "")
        + "</dd></div>"
        for label, value, remark in entries
    )
    return f'<dl class="cards">{"".join(boxes)}</dl>'


def _size(text: str) -> str:
    return ' class="long"' if len(text) > LONG else ""


def _breakable(text: str) -> str:
    """Escape a text and let lines break behind the slashes of a path, not inside its words."""
    return escape(text).replace("/", "/<wbr>")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "", text_columns: int = 1) -> str:
    """Return a table; the first `text_columns` columns are text, the others numbers, aligned right."""

    def line(cells: Sequence[object], tag: str) -> str:
        kinds = ("" if i < text_columns else ' class="num"' for i in range(len(cells)))
        scope = ' scope="col"' if tag == "th" else ""
        filled = (f"<{tag}{scope}{k}>{escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(filled)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="plain">{title}'
        f"<thead>{line(headers, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def facts(entries: Mapping[str, object]) -> str:
    """Return a two-column list of label and text."""
    pairs = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in entries.items())
    return f'<dl class="facts">{pairs}</dl>'


def short(value: float | None, digits: int = 4) -> str:
    """Format a number for a person: `digits` significant ones, thousands separated, a dash for None."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def duration(seconds: float | None) -> str:
    """Format a time: `8.25 s`, `4 min 05 s`, `3 h 07 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
