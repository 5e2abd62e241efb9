"""What a study leaves on disk: arrays, coloured clouds, sheets of pictures (`docs/look.md` lists names and keys)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datasets.formats.ply import write_ply
from tools.look.study import Query, Study
from tools.report.clouds import VALUE_SCALE, scale_colors
from utils.files import write_atomic

CLOUDS = "clouds"


def write_arrays(folder: Path, study: Study, query: Query, about: Mapping[str, str]) -> None:
    """Write `look.npz`, of all clouds, and an npz and coloured PLY files of each into `clouds/`."""
    (folder / CLOUDS).mkdir(exist_ok=True)
    clouds = study.clouds
    arrays: dict[str, Any] = {
        "names": np.array([cloud.name for cloud in clouds]),
        "notes": np.array([cloud.note or "" for cloud in clouds]),
        "method": np.array(study.method),
        "query": np.array(query),
        "features": np.stack([cloud.feature for cloud in clouds]),
        "neighbours": study.near,
        "neighbour_cosine": study.near_cosine,
        **{f"map_{name}": places for name, places in study.maps.items()},
        **{key: np.array(value) for key, value in about.items()},
    }
    for scale, axes in enumerate(study.axes):
        parts = {"mean": axes.mean, "axes": axes.rows, "share": axes.share, "low": axes.low, "high": axes.high}
        arrays |= {f"pca{scale}_{name}": part for name, part in parts.items()}
    _save(folder / "look.npz", arrays)
    similar = [study.similarity(query, scale) for scale in range(len(study.axes))]
    for number in range(len(clouds)):
        stem = folder / CLOUDS / file_stem(number, clouds[number].name)
        _write_cloud(stem, study, query, number, [one[number] for one in similar])


def file_stem(number: int, name: str) -> str:
    """Return what the files of a cloud are called."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}"


def error_colors(error: np.ndarray, most: float) -> np.ndarray:
    """Return distances (n,) as colours (n, 3) in 0-1, from 0 to `most`."""
    return scale_colors(VALUE_SCALE, error / max(most, 1e-12)) / 255


def _write_cloud(stem: Path, study: Study, query: Query, number: int, similar: list[np.ndarray]) -> None:
    cloud = study.clouds[number]
    arrays: dict[str, Any] = {"points": cloud.points, "feature": cloud.feature}
    for scale, one in enumerate(cloud.scales):
        colors = study.patch_colors(number, scale)
        on_points = study.on_points(number, scale, colors)
        parts = {
            "index": one.index, "centers": one.centers, "features": one.features, "colors": colors, "point_colors": on_points,
            "similarity": similar[scale],
        }  # fmt: skip
        if number == query.cloud:
            row = study.row(query, scale)
            parts |= {"query": np.array(row), "attention": one.attention(row), "other_tokens": np.array(one.extra)}
        arrays |= {f"scale{scale}_{name}": part for name, part in parts.items()}
        write_ply(f"{stem}_scale{scale}.ply", cloud.points, colors=on_points)
    if cloud.rebuilt is not None:
        made = cloud.rebuilt
        arrays |= {f"rebuilt_{name}": getattr(made, name) for name in made._fields if name != "masks"}
        arrays |= {f"scale{scale}_masked": mask for scale, mask in enumerate(made.masks)}
        write_ply(
            f"{stem}_rebuilt.ply", made.cloud, colors=error_colors(made.cloud_error, float(made.cloud_error.max()))
        )
        write_ply(f"{stem}_error.ply", cloud.points, colors=error_colors(made.error, float(made.error.max())))
    _save(stem.with_name(f"{stem.name}.npz"), arrays)


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
