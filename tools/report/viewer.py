"""The turnable gallery of the page: packs the clouds into the file and lays out the controls."""

import base64
from collections.abc import Sequence

import numpy as np

from tools.report import splat
from tools.report.clouds import CATEGORIES, COLUMN_COLORS, HEIGHT_SCALE, VALUE_SCALE, Cloud, Row, equal_count
from tools.report.markup import Section, embed_json, escape, short
from tools.report.thumbnails import data_address

WIDE = 4  # pictures and clouds in one row; a row with more is as wide as the page


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
    differ = len({_heights(row) for row in rows}) > 1
    body = (
        f"{_controls(rows, paint)}{_height_legend(rows, differ)}"
        '<p class="hint">Drag to turn, double-click to reset; click a row first to zoom with the wheel. On a touch screen one '
        "finger turns to the side, two turn, tilt and zoom. Keyboard: arrows turn, + and - zoom, "
        f"0 resets{_frame_keys(rows)}. The address follows the view: copy it to share what you see.{_without_values(rows)}</p>"
        '<noscript><p class="none">Turning needs scripts; gallery.png shows the same clouds.</p></noscript>'
        f'<div class="items{_density(rows)}">{"".join(_row(row, f"cloud-{i}", differ) for i, row in enumerate(rows))}</div>'
        f"{embed_json(data, element_id='gallery-data')}"
    )
    return Section(title, body, lead)


def _frames(rows: list[Row]) -> int:
    """Return the largest number of frames of a cloud."""
    return max((len(cloud.frames) for row in rows for cloud in row.clouds), default=0)


def _frame_keys(rows: list[Row]) -> str:
    return ", comma and full stop go through the values" if _frames(rows) else ""


def _density(rows: list[Row]) -> str:
    """Let many rows of single clouds stand closer."""
    return " small" if len(rows) > 4 and all(len(row.clouds) + len(row.pictures) < 2 for row in rows) else ""


def _without_values(rows: list[Row]) -> str:
    """Say how rows are coloured that lack the values which others have."""
    if len({row.has_values for row in rows}) < 2:
        return ""
    names = " or ".join(dict.fromkeys(row.value_name for row in rows if row.has_values))
    return f" Rows without {escape(names)} are coloured by height."


def _controls(rows: list[Row], paint: str) -> str:
    names = list(dict.fromkeys(row.value_name for row in rows if row.has_values))
    denser = any(len(cloud.points) > equal_count(row) > 0 and not cloud.dense for row in rows for cloud in row.clouds)
    by_value = f'<option value="value">{escape(" or ".join(names))}</option>' if names else ""
    painted = f'<option value="paint">{escape(paint)}</option>' if paint else ""
    options = f'{painted}{by_value}<option value="height">height</option><option value="cloud">column</option>'
    last = _frames(rows) - 1
    frame = (
        f'<label>values <input type="range" id="view-frame" min="0" max="{last}" step="1" value="{last}">'
        '<output id="view-frame-label" for="view-frame"></output></label>'
        if last >= 0
        else ""
    )
    equal = '<label><input type="checkbox" id="view-equal" checked> equal point counts</label>' if denser else ""
    return (
        '<div class="controls" role="group" aria-label="Gallery display">'
        f'<label>colour by <select id="view-color">{options}</select></label>'
        '<label>point size <input type="range" id="view-size" min="0.4" max="2.5" step="0.05" value="1"></label>'
        f'{frame}{equal}<label><input type="checkbox" id="view-link"> turn all rows together</label>'
        '<label><input type="checkbox" id="view-spin"> rotate</label>'
        '<button type="button" id="view-reset">reset</button></div>'
    )


def _row(row: Row, anchor: str, heights: bool) -> str:
    cells = "".join(_picture(name, image, row.name) for name, image in row.pictures.items())
    cells += "".join(_cell(cloud, column) for column, cloud in enumerate(row.clouds))
    wide = " wide" if len(row.pictures) + len(row.clouds) > WIDE else ""
    note = f'<p class="note">{escape(row.note)}</p>' if row.note else ""
    described = ", ".join(f"{cloud.name} with {cloud.total} points" for cloud in row.clouds)
    keys = "Arrow keys turn, plus and minus zoom, zero resets."
    label = escape(f"{row.name}: {described}. {keys}")
    return (
        f'<article class="item{wide}" id="{anchor}"><header><h3>{escape(row.name)}</h3>'
        '<button type="button" class="enlarge" aria-pressed="false">enlarge</button></header>'
        f'{note}<div class="clouds" tabindex="0" role="application" aria-label="{label}">'
        f"{cells}</div>{_legend(row, heights)}</article>"
    )


def _picture(name: str, image: np.ndarray, row_name: str) -> str:
    return (
        f'<div class="picture"><img src="{data_address(image)}" alt="{escape(row_name)}, {escape(name)}" draggable="false">'
        f'<div class="caption"><b>{escape(name)}</b></div></div>'
    )


def _cell(cloud: Cloud, column: int) -> str:
    dot = COLUMN_COLORS[column % len(COLUMN_COLORS)]
    frame = '<span class="frame"></span> ' if cloud.frames else ""
    return (
        f'<div class="cloud"><canvas></canvas><div class="caption"><b style="--dot:{dot}">{escape(cloud.name)}</b> '
        f'{frame}<span class="count">{_count_text(cloud)}</span></div></div>'
    )


def _count_text(cloud: Cloud) -> str:
    text = f"{cloud.total:,}"
    if len(cloud.points) < cloud.total - cloud.dropped:
        text = f"{len(cloud.points):,} of {text}"
    return text + (f", {cloud.dropped:,} not finite" if cloud.dropped else "")


def _height_legend(rows: list[Row], differ: bool) -> str:
    """Return what colours by height mean on all rows; where their heights `differ` each row gives its own."""
    low, high = ("lowest", "highest") if differ else _heights(rows[0])
    plain = "" if all(row.has_values for row in rows) else " unvalued"
    return _ramp(f"by-height{plain}", "height, in the unit of the cloud", low, high, HEIGHT_SCALE)


def _heights(row: Row) -> tuple[str, str]:
    low, high = row.height_range
    return short(low, 3), short(high, 3)


def _legend(row: Row, heights: bool) -> str:
    """Return what the colours mean; the style sheet shows the one of the chosen colouring. `heights`: the row gives its own."""
    plain = "" if row.has_values else " unvalued"
    height = f'<p class="ramp by-height{plain}">height {" to ".join(_heights(row))}</p>' if heights else ""
    if row.legend is not None:
        values = [
            shade for cloud in row.clouds for shade in (cloud.values, *cloud.frames.values()) if shade is not None
        ]
        used = {int(index) for shade in values for index in np.unique(shade)}
        entries = "".join(
            f'<li style="--dot:{CATEGORIES[index % len(CATEGORIES)]}">{escape(name)}</li>'
            for index, name in enumerate(row.legend)
            if index in used
        )
        return f'<ul class="categories by-value">{entries}</ul>{height}'
    if row.value_range is not None:
        low, high = (short(value, 3) for value in row.value_range)
        return _ramp("by-value", row.value_name, low, high, VALUE_SCALE) + height
    return height


def _ramp(kind: str, name: str, low: str, high: str, scale: Sequence[str]) -> str:
    return (
        f'<p class="ramp {kind}">{escape(name)}: <span>{low}<i style="--ramp:{",".join(scale)}"></i>{high}</span></p>'
    )


def _pack_row(row: Row) -> dict:
    # One scale for the item: 16 bits over its extent are finer than a pixel at any zoom offered.
    extent = max((float(np.abs(cloud.points).max(initial=0)) for cloud in row.clouds), default=0.0) or 1.0
    clouds, known = [], {}
    for column, cloud in enumerate(row.clouds):
        grid = np.rint(cloud.points / extent * 32767).astype("<i2").tobytes()
        first = known.setdefault(grid, column)
        clouds.append(_pack(cloud) | ({"xyz": _text(grid)} if first == column else {"same": first}))
    return {"unit": extent / 32767, "fit": row.fit, "categories": row.legend is not None, "clouds": clouds}


def _pack(cloud: Cloud) -> dict:
    """Return what the page holds of a cloud besides its points, which those of one row may share."""
    packed = {"n": len(cloud.points), "total": cloud.total, "dense": cloud.dense}
    if cloud.values is not None:
        packed["values"] = _text(cloud.values.tobytes())
    if cloud.frames:
        packed["frames"] = [[label, _text(values.tobytes())] for label, values in cloud.frames.items()]
    return packed


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
