"""The page of a study: turnable clouds whose patches can be clicked, similar clouds, maps; one file without a network."""

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tools.look.capture import Layer, Scale
from tools.look.study import CloudStudy, Study
from tools.report import page, thumbnails
from tools.report.clouds import VALUE_SCALE, GalleryItem, prepare_all, unit_frame
from tools.report.markup import Section, asset, cards, embed_json, escape, facts, portable, table
from tools.report.splat import draw
from tools.report.viewer import gallery_section
from utils.files import write_atomic

ATTENTION_BYTES = 24 << 20  # of queries and keys on one page; further clouds have none
SCAN = "all points"
THUMBNAIL = 120  # pixels
MAP_WIDTH, MAP_HEIGHT, MAP_EDGE = 640, 420, 60
SHOW = {"features": "features (PCA)", "similarity": "similarity to the patch", "attention": "attention of the patch"}
HIDDEN = {"hidden": "hidden patches"}
LEAD = (
    "Click a point, or press , and . in a row, to choose its patch: similarity shows where else there is such a patch, attention what the "
    "patch attends to, in pink the patch itself. Equal colours of features mean similar patches on all clouds."
)


def write_page(folder: Path, study: Study, about: Mapping[str, str], up_axis: str) -> Path:
    """Write `look.html`; returns its path."""
    masks = study.clouds[0].rebuilt is not None
    rows = prepare_all([_item(cloud, up_axis) for cloud in study.clouds])
    gallery = gallery_section(rows, title="Patches", lead=LEAD, paint="patches")
    data = _data(study, up_axis)
    controls = _controls(len(study.axes), SHOW | (HIDDEN if masks else {}))
    body = f"{controls}{gallery.body}{embed_json(data, element_id='look-data')}"
    sections = [Section(gallery.title, body, gallery.lead), *_similar_clouds(study, up_axis), _axes(study)]
    sections.append(Section("Provenance", facts({label: portable(text) for label, text in about.items()})))
    first = study.clouds[0]
    counts = " + ".join(str(len(scale.index)) for scale in first.scales)
    text = page.page(
        f"What {study.method} has learned",
        subtitle=about.get("checkpoint", ""),
        cards=cards(
            [
                ("clouds", str(len(study.clouds)), ""),
                ("patches", counts, "of the first cloud, finest scale first"),
                ("attention", f"{_kept(study)} of {len(study.clouds)}", "clouds of which this page keeps it"),
            ]
        ),
        sections=sections,
        script=asset("look.js"),
    )
    path = folder / "look.html"
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))
    return path


def _item(cloud: CloudStudy, up_axis: str) -> GalleryItem:
    clouds, values = {"cloud": cloud.points}, None
    if cloud.rebuilt is not None:
        clouds["rebuilt"] = cloud.rebuilt.cloud
        values = {"cloud": cloud.rebuilt.error, "rebuilt": cloud.rebuilt.cloud_error}
    if cloud.scan is not None:
        clouds[SCAN] = cloud.scan
    unit = "error, distance in the unit of the cloud"
    return GalleryItem(cloud.name, clouds, up_axis, cloud.note, values, value_name=unit, dense=(SCAN,))


def _controls(scales: int, show: Mapping[str, str]) -> str:
    def select(name: str, label: str, entries: Mapping[str, str]) -> str:
        options = "".join(f'<option value="{value}">{escape(text)}</option>' for value, text in entries.items())
        return f'<label>{label} <select id="look-{name}">{options}</select></label>'

    numbers = {str(scale): f"{scale}" for scale in range(scales)}
    return (
        '<div class="controls patches" role="group" aria-label="Patches">'
        f"{select('show', 'show', show)}{select('scale', 'scale (0 = finest)', numbers)}"
        f"{select('layer', 'layer', {})}{select('head', 'head', {})}</div>"
        '<p class="ramp" aria-live="polite"><span id="look-legend"></span>'
        '<span id="look-ramp"><span id="look-low"></span>'
        f'<i style="--ramp:{",".join(VALUE_SCALE)}"></i>'
        '<span id="look-high"></span></span></p>'
    )


def _data(study: Study, up_axis: str) -> dict:
    kept = _kept(study)
    clouds = [
        {
            "name": cloud.name,
            "painted": [0] if cloud.scan is None else [0, 1 + (cloud.rebuilt is not None)],
            "scales": [
                _pack(study, number, scale, attention=number < kept) | _frame(cloud, one, up_axis)
                for scale, one in enumerate(cloud.scales)
            ],
        }
        for number, cloud in enumerate(study.clouds)
    ]
    return {"dims": [len(axes.rows) for axes in study.axes], "clouds": clouds}


def _frame(cloud: CloudStudy, scale: Scale, up_axis: str) -> dict[str, str]:
    return {"centers": _text(unit_frame(scale.centers, cloud.points, up_axis), "<f4")}


def _pack(study: Study, number: int, scale: int, *, attention: bool) -> dict:
    cloud = study.clouds[number]
    one = cloud.scales[scale]
    reduced = study.axes[scale].reduce(one.features)
    reduced = reduced / max(float(np.abs(reduced).max(initial=0)), 1e-12)  # in half precision; only angles matter
    packed = {
        "index": one.index.tolist(),
        "colors": _text(np.rint(255 * study.patch_colors(number, scale)), "u1"),
        "features": _text(reduced, "<f2"),
    }
    if cloud.rebuilt is not None:
        packed["masked"] = _text(cloud.rebuilt.masks[scale][one.index], "u1")
    if attention:
        packed["layers"] = [_pack_layer(layer) for layer in one.layers]
    return packed


def _pack_layer(layer: Layer) -> dict:
    packed = {
        "heads": layer.query.shape[0],
        "width": layer.query.shape[2],
        "extra": layer.extra,
        "q": _text(layer.query.cpu().numpy(), "<f2"),
        "k": _text(layer.key.cpu().numpy(), "<f2"),
    }
    if layer.allowed is not None:
        packed["allowed"] = _text(np.packbits(layer.allowed.cpu().numpy().ravel()), "u1")
    return packed


def _kept(study: Study) -> int:
    """Return of how many clouds, from the first on, the page holds queries and keys."""
    sizes = [
        sum(2 * (layer.query.numel() + layer.key.numel()) for scale in cloud.scales for layer in scale.layers)
        for cloud in study.clouds
    ]
    return int((np.cumsum(sizes) <= ATTENTION_BYTES).sum())


def _text(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array).astype(kind).tobytes()).decode("ascii")


def _similar_clouds(study: Study, up_axis: str) -> list[Section]:
    """Return the wall of most similar clouds and the maps; each picture is in the page once."""
    if len(study.clouds) < 2:
        return []
    last = len(study.axes) - 1
    symbols = []
    for number, cloud in enumerate(study.clouds):
        colors = 255 * study.on_points(number, last, study.patch_colors(number, last))
        image = draw(unit_frame(cloud.points, cloud.points, up_axis), colors, THUMBNAIL, clear=True)
        symbols.append(
            f'<symbol id="cloud-picture-{number}" viewBox="0 0 {THUMBNAIL} {THUMBNAIL}">'
            f'<image width="{THUMBNAIL}" height="{THUMBNAIL}" href="{thumbnails.data_address(image)}"/></symbol>'
        )
    wall = [
        [(_use(number, study), study.clouds[number].name)]
        + [
            (_use(int(other), study), f"{study.clouds[other].name}, {value:.3f}")
            for other, value in zip(study.near[number], study.near_cosine[number], strict=True)
        ]
        for number in range(len(study.clouds))
    ]
    hidden = f'<svg width="0" height="0" style="position:absolute" aria-hidden="true">{"".join(symbols)}</svg>'
    lead = "Each row: a cloud, then those whose features have the largest cosine with its own, which is the number."
    sections = [Section("Similar clouds", hidden + thumbnails.picture_rows(wall), lead)]
    for name, places in study.maps.items():
        title = {"tsne": "t-SNE", "umap": "UMAP"}[name]
        lead = "Near clouds have similar features; the axes have no unit. Point at a dot to see its cloud."
        sections.append(Section(f"Map by {title}", _map(study, places, title), lead))
    return sections


def _use(number: int, study: Study) -> str:
    label = escape(study.clouds[number].name)
    return f'<svg width="{THUMBNAIL}" height="{THUMBNAIL}" role="img" aria-label="{label}"><use href="#cloud-picture-{number}"/></svg>'


def _map(study: Study, places: np.ndarray, title: str) -> str:
    low, width = places.min(0), np.ptp(places, axis=0)
    shares = (places - low) / np.where(width > 0, width, 1)
    extent = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_EDGE
    dots = "".join(
        f'<a href="#cloud-{number}" class="dot-of-map" aria-label="{escape(study.clouds[number].name)}">'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6"/><text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(_label(study, number))}</text>'
        f'<use href="#cloud-picture-{number}" x="{x - THUMBNAIL / 2:.1f}" y="{y - THUMBNAIL / 2:.1f}" '
        f'width="{THUMBNAIL}" height="{THUMBNAIL}"/></a>'
        for number, (x, y) in enumerate(shares * extent + MAP_EDGE)
    )
    size = f"0 0 {MAP_WIDTH} {MAP_HEIGHT}"
    return f'<div class="panel"><svg class="map" viewBox="{size}" role="group" aria-label="{title}">{dots}</svg></div>'


def _label(study: Study, number: int) -> str:
    return study.clouds[number].note or study.clouds[number].name


def _axes(study: Study) -> Section:
    rows = [
        [
            scale,
            axes.rows.shape[1],
            *(f"{share:.1%}" for share in np.pad(axes.share, (0, 3))[:3]),
            f"{axes.share.sum():.1%}",
        ]
        for scale, axes in enumerate(study.axes)
    ]
    headers = ["scale", "channels", "red", "green", "blue", "all axes kept"]
    lead = "Part of the variance of the patches of all clouds along the axes that are the colours; similarities use all axes kept."
    return Section("Principal axes", f'<div class="panel">{table(headers, rows)}</div>', lead)
