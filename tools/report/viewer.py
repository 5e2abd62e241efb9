"""The turnable gallery of the page: packs the clouds into the file and lays out the controls."""

import base64

import numpy as np

from tools.report import splat
from tools.report.clouds import CATEGORIES, COLUMN_COLORS, HEIGHT_SCALE, VALUE_SCALE, Cloud, Row, equal_count
from tools.report.markup import Section, embed_json, escape, short


def gallery_section(rows: list[Row], *, title: str = "Gallery", lead: str = "", paint: str = "") -> Section:
    """Return the section with the viewer; `viewer.js` draws into its canvases.

    Args:
        paint: what another script of the page colours points by; clouds that it leaves out are coloured by their values.
    """
    data = {
        "scales": {"height": HEIGHT_SCALE, "value": VALUE_SCALE, "category": CATEGORIES, "cloud": COLUMN_COLORS},
        "view": {"yaw": splat.YAW, "pitch": splat.PITCH, "camera": splat.CAMERA, "margin": splat.MARGIN},
        "light": [float(f"{value:.3g}") for value in splat.LIGHT],
        "items": [_pack_row(row) for row in rows],
    }
    body = (
        f'{_controls(rows, paint)}<p class="hint">Drag to turn, double-click to reset. Click a row first to zoom with the '
        f"wheel or two fingers. Keyboard: arrows turn, + and - zoom, 0 resets.{_without_values(rows)}</p>"
        '<noscript><p class="none">Turning needs scripts; gallery.png shows the same clouds.</p></noscript>'
        f'<div class="items{_density(rows)}">{"".join(_row(row, f"cloud-{i}") for i, row in enumerate(rows))}</div>'
        f"{embed_json(data, element_id='gallery-data')}"
    )
    return Section(title, body, lead)


def _density(rows: list[Row]) -> str:
    """Let rows of single clouds stand closer."""
    return " small" if all(len(row.clouds) < 2 for row in rows) else ""


def _without_values(rows: list[Row]) -> str:
    """Say how rows are coloured that lack the values which others have."""
    if len({row.has_values for row in rows}) < 2:
        return ""
    names = " or ".join(dict.fromkeys(row.value_name for row in rows if row.has_values))
    return f" Rows without {escape(names)} are coloured by height."


def _controls(rows: list[Row], paint: str) -> str:
    names = list(dict.fromkeys(row.value_name for row in rows if row.has_values))
    denser = any(len(cloud.points) > equal_count(row) > 0 for row in rows for cloud in row.clouds)
    by_value = f'<option value="value">{escape(" or ".join(names))}</option>' if names else ""
    painted = f'<option value="paint">{escape(paint)}</option>' if paint else ""
    options = f'{painted}{by_value}<option value="height">height</option><option value="cloud">column</option>'
    equal = '<label><input type="checkbox" id="view-equal" checked> equal point counts</label>' if denser else ""
    return (
        '<div class="controls" role="group" aria-label="Gallery display">'
        f'<label>colour by <select id="view-color">{options}</select></label>'
        '<label>point size <input type="range" id="view-size" min="0.4" max="2.5" step="0.05" value="1"></label>'
        f'{equal}<label><input type="checkbox" id="view-link"> turn all rows together</label>'
        '<label><input type="checkbox" id="view-spin"> rotate</label>'
        '<button type="button" id="view-reset">reset</button></div>'
    )


def _row(row: Row, anchor: str) -> str:
    cells = "".join(
        f'<div class="cloud"><canvas></canvas><div class="caption"><b>{escape(cloud.name)}</b> '
        f'<span class="count">{_count_text(cloud)}</span></div></div>'
        for cloud in row.clouds
    )
    note = f'<p class="note">{escape(row.note)}</p>' if row.note else ""
    described = ", ".join(f"{cloud.name} with {cloud.total} points" for cloud in row.clouds)
    keys = "Arrow keys turn, plus and minus zoom, zero resets."
    label = escape(f"{row.name}: {described}. {keys}")
    return (
        f'<article class="item" id="{anchor}"><header><h3>{escape(row.name)}</h3>'
        '<button type="button" class="enlarge" aria-pressed="false">enlarge</button></header>'
        f'{note}<div class="clouds" tabindex="0" role="application" aria-label="{label}">'
        f"{cells}</div>{_legend(row)}</article>"
    )


def _count_text(cloud: Cloud) -> str:
    text = f"{cloud.total:,}"
    if len(cloud.points) < cloud.total - cloud.dropped:
        text = f"{len(cloud.points):,} of {text}"
    return text + (f", {cloud.dropped:,} not finite" if cloud.dropped else "")


def _legend(row: Row) -> str:
    if row.legend is not None:
        used = {int(index) for cloud in row.clouds if cloud.values is not None for index in np.unique(cloud.values)}
        entries = "".join(
            f'<li style="--dot:{CATEGORIES[index % len(CATEGORIES)]}">{escape(name)}</li>'
            for index, name in enumerate(row.legend)
            if index in used
        )
        return f'<ul class="categories">{entries}</ul>'
    if row.value_range is not None:
        low, high = (short(value, 3) for value in row.value_range)
        return (
            f'<p class="ramp">{escape(row.value_name)}: {low}<i style="--ramp:{",".join(VALUE_SCALE)}"></i>{high}</p>'
        )
    return ""


def _pack_row(row: Row) -> dict:
    # One scale for the item: 16 bits over its extent are finer than a pixel at any zoom offered.
    extent = max((float(np.abs(cloud.points).max(initial=0)) for cloud in row.clouds), default=0.0) or 1.0
    clouds = [_pack(cloud, extent) for cloud in row.clouds]
    return {"unit": extent / 32767, "fit": row.fit, "categories": row.legend is not None, "clouds": clouds}


def _pack(cloud: Cloud, extent: float) -> dict:
    grid = np.rint(cloud.points / extent * 32767).astype("<i2")
    packed = {"n": len(grid), "xyz": base64.b64encode(grid.tobytes()).decode("ascii"), "total": cloud.total}
    if cloud.values is not None:
        packed["values"] = base64.b64encode(cloud.values.tobytes()).decode("ascii")
    return packed
