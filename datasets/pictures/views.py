"""Pictures of the clouds of a set: files that it came with, or drawn here once.

All pictures of a set have numbers, cloud after cloud: picture v of cloud m is number `first[m] + v`.

Legend: M clouds, B clouds of a batch, n pictures of each, S pixels a side.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from datasets.cache import Recipe, cached
from datasets.clouds import CloudSet
from datasets.normals import estimate_normals
from datasets.pictures.rendering import VERSION, Cameras, orbit, render_clouds
from datasets.transforms import normalize_unit_sphere
from utils.dist import rank, world_size
from utils.errors import UserError
from utils.reading import check_file

CHUNK = 32  # clouds drawn at once
READERS = 4  # files read at once

_LOG = logging.getLogger("m2ae.data")


class Views(Protocol):
    """Pictures of the clouds of a set.

    Attributes:
        counts: (M,) int64, pictures of each cloud.
        origin: what they depend on, in JSON-like values, and `sources`, the files among that; for caches of what is made of them.
    """

    counts: np.ndarray
    origin: dict
    sources: list[Path]

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Return pictures by their numbers, (len, 3, S, S) uint8."""


@dataclass
class DrawnViews:
    """Grey pictures (M, V, S, S) uint8 in one array."""

    images: np.ndarray
    origin: dict

    def __post_init__(self):
        self.counts = np.full(len(self.images), self.images.shape[1], dtype=np.int64)
        self.sources: list[Path] = []

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Return pictures (n, 3, S, S) uint8 by their numbers."""
        flat = self.images.reshape(-1, *self.images.shape[2:])
        return torch.from_numpy(flat[np.asarray(numbers)]).unsqueeze(1).expand(-1, 3, -1, -1)


@dataclass
class FileViews:
    """Square PNG files, scaled to `size` pixels a side; what lies behind transparent pixels is shown, as published (black there).

    Args:
        files: those of each cloud; `names` of the clouds, for messages.
    """

    files: list[list[Path]]
    names: list[str]
    size: int

    def __post_init__(self):
        self.counts = np.array([len(group) for group in self.files], dtype=np.int64)
        self.origin = {"size": self.size}
        self._expected: tuple[int, int] | None = None  # size of the first picture, which all must have

    @cached_property
    def sources(self) -> list[Path]:
        """Return the files of the pictures, by their numbers."""
        return [path for group in self.files for path in group]

    @cached_property
    def _owners(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.files)), self.counts)

    def load(self, numbers: Sequence[int]) -> Tensor:
        """Return pictures (n, 3, S, S) uint8 by their numbers."""
        if self._expected is None:
            self._expected = self._open(0)[1]
        with ThreadPoolExecutor(READERS) as pool:
            pictures = list(pool.map(self._read, [int(number) for number in numbers]))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)

    def _read(self, number: int) -> np.ndarray:
        from PIL import Image

        picture, size = self._open(number)
        if size != self._expected or size[0] != size[1]:
            where = f"{self.sources[number]}: the picture of the shape {self.names[self._owners[number]]}"
            raise UserError(
                f"{where} has {size[0]} x {size[1]} pixels, and {self.sources[0]} has {self._expected[0]} x {self._expected[1]}; expected "
                "squares of one size. Render or download the one again that differs from the others"
            )
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def _open(self, number: int):
        """Return a picture as RGB, and its size."""
        from PIL import Image, UnidentifiedImageError

        path = self.sources[number]
        check_file(path)
        try:
            with Image.open(path) as file:
                return file.convert("RGB"), file.size
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{path}: the picture of the shape {self.names[self._owners[number]]} cannot be read ({error}); "
                "render or download it again"
            ) from error


def open_views(clouds: CloudSet, *, size: int, views: int, kind: str) -> Views:
    """Return the pictures of a set: its own files, else `views` of each cloud drawn once and kept in the cache.

    Args:
        size: pixels a side.
        views, kind: of those that are drawn, see `render_clouds`.
    """
    if clouds.view_files is not None:
        return FileViews(clouds.view_files, clouds.names, size)
    cameras = orbit(views, up_axis=clouds.up_axis)
    digest = hashlib.sha256(np.ascontiguousarray(clouds.points)).hexdigest()
    origin = {"clouds": digest, "size": size, "views": views, "kind": kind, "up": clouds.up_axis}
    arrays = cached(
        Recipe(
            name=f"views-{clouds.name}-{clouds.subset}",
            key=origin,
            sources=[],
            fields={"images": ("|u1", (views, size, size))},
            count=len(clouds),
            chunks=lambda: _draw(clouds, cameras, size, kind),
            version=str(VERSION),
        )
    )
    return DrawnViews(arrays["images"], origin)


def choose_views(views: Views, rows: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Choose `count` pictures of each cloud without replacement: their numbers (B, count) int64.

    Drawn for the global batch: every process draws the same numbers and keeps its own rows.

    Args:
        rows: (B,) int64, which clouds; every process has as many.

    Raises:
        UserError: a cloud has fewer pictures.
    """
    counts = torch.from_numpy(views.counts)
    if int(counts.min()) < count:
        raise UserError(
            f"image_branch.n_imgs: {count} pictures a step are asked, but a shape has {int(counts.min())}; lower it"
        )
    B = len(rows)
    scores = torch.rand(B * world_size(), int(counts.max()), generator=generator)[B * rank() : B * (rank() + 1)]
    scores = scores.masked_fill(torch.arange(scores.shape[1]) >= counts[rows].unsqueeze(1), 2.0)
    first = counts.cumsum(0) - counts
    return first[rows].unsqueeze(1) + scores.argsort(dim=1)[:, :count]


def _draw(clouds: CloudSet, cameras: Cameras, size: int, kind: str) -> Iterator[dict[str, np.ndarray]]:
    _LOG.info(
        "%s (%s): drawing %d pictures of each of %d clouds once",
        clouds.name,
        clouds.subset,
        len(cameras.axes),
        len(clouds),
    )
    for begin in range(0, len(clouds), CHUNK):
        points = normalize_unit_sphere(torch.from_numpy(np.array(clouds.points[begin : begin + CHUNK])))
        normals = None
        if kind == "shaded":
            given = None if clouds.normals is None else np.array(clouds.normals[begin : begin + CHUNK])
            normals = torch.from_numpy(estimate_normals(points.double().numpy()) if given is None else given)
        yield {"images": render_clouds(points, cameras, size, kind=kind, normals=normals).numpy()}
