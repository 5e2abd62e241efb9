"""All clouds of a page under one model: patches at every scale, axes that they share, neighbours, maps, rebuilt clouds."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.base import PointModel
from tools.look.capture import Scale, observe
from tools.look.projection import Axes, cosine, interpolate, maps, neighbours, principal_axes
from tools.look.rebuild import Rebuilt, rebuild
from utils.errors import UserError
from utils.log import track

NEIGHBOURS = 5


class Given(NamedTuple):
    """A cloud to study."""

    name: str
    points: Tensor  # (N, 3), as the model takes it
    note: str | None = None  # what is known of it, such as its class
    scan: np.ndarray | None = None  # (n, 3), all points of the file in the same frame, where the model takes fewer


@dataclass
class CloudStudy:
    """What a model makes of one cloud."""

    name: str
    note: str | None
    points: np.ndarray  # (N, 3) float32, as the method transforms them
    scales: list[Scale]  # finest first
    feature: np.ndarray  # (C,) float32, of the whole cloud
    rebuilt: Rebuilt | None  # of a masked autoencoder
    scan: np.ndarray | None = None  # (n, 3), all points of the file, if the method leaves points where they are


class Query(NamedTuple):
    """A patch: the cloud, and the group of the coarsest scale; at other scales it is the patch nearest to that."""

    cloud: int = 0
    patch: int = 0


@dataclass
class Study:
    """What a model makes of several clouds.

    Attributes:
        axes: principal axes of each scale, over all clouds.
        near, near_cosine: (M, k), the most similar other clouds.
        maps: name -> (M, 2).
    """

    method: str
    clouds: list[CloudStudy]
    axes: list[Axes] = field(init=False)
    near: np.ndarray = field(init=False)
    near_cosine: np.ndarray = field(init=False)
    maps: dict[str, np.ndarray] = field(init=False)
    seed: int = 0

    def __post_init__(self):
        scales = range(len(self.clouds[0].scales))
        self.axes = [principal_axes([cloud.scales[scale].features for cloud in self.clouds]) for scale in scales]
        features = np.stack([cloud.feature for cloud in self.clouds])
        self.near, self.near_cosine = neighbours(features, NEIGHBOURS)
        self.maps = maps(features, self.seed)

    def patch_colors(self, cloud: int, scale: int) -> np.ndarray:
        """Return the colours of the patches of a cloud, (P, 3) in 0-1."""
        return self.axes[scale].colors(self.clouds[cloud].scales[scale].features)

    def on_points(self, cloud: int, scale: int, values: np.ndarray) -> np.ndarray:
        """Carry values (P, ...) of the patches of a cloud over to its points, (N, ...)."""
        one = self.clouds[cloud]
        return interpolate(one.points, one.scales[scale].centers, values.reshape(len(values), -1)).reshape(
            len(one.points), *values.shape[1:]
        )

    def row(self, query: Query, scale: int) -> int:
        """Return the row of a query at a scale.

        Raises:
            UserError: there is no such cloud or patch.
        """
        if not 0 <= query.cloud < len(self.clouds):
            raise UserError(f"query: cloud {query.cloud} is none of 0 to {len(self.clouds) - 1}")
        scales = self.clouds[query.cloud].scales
        rows = np.flatnonzero(scales[-1].index == query.patch)
        if not len(rows):
            raise UserError(f"query: patch {query.patch} is none of 0 to {scales[-1].index[-1]}")
        return scales[scale].nearest(scales[-1].centers[rows[0]]) if scale < len(scales) - 1 else int(rows[0])

    def similarity(self, query: Query, scale: int) -> list[np.ndarray]:
        """Return how similar the patches of each cloud are to a query: cosines (P,) of features less their mean over all clouds."""
        mean, row = self.axes[scale].mean, self.row(query, scale)
        features = [cloud.scales[scale].features - mean for cloud in self.clouds]
        return [cosine(features[query.cloud][row], rows) for rows in features]


def study(model: PointModel, clouds: Iterable[Given], seed: int = 0) -> Study:
    """Study clouds under a model in evaluation mode, one at a time, because they may differ in size.

    Raises:
        UserError: features are not finite.
    """
    return Study(
        model.method, [_study_cloud(model, given, seed) for given in track(list(clouds), "encoding clouds")], seed=seed
    )


@torch.inference_mode()
def _study_cloud(model: PointModel, given: Given, seed: int) -> CloudStudy:
    points, scales = observe(model, given.points)
    feature = model.encode(given.points[None])[0].float().cpu().numpy()
    if not all(np.isfinite(part).all() for part in (feature, *(scale.features for scale in scales))):
        raise UserError(f"{given.name}: its features are not finite; take weights that are, and clouds of usual extent")
    scan = given.scan if torch.equal(points, given.points) else None
    made = rebuild(model, given.points, seed)
    return CloudStudy(given.name, given.note, points.float().cpu().numpy(), scales, feature, made, scan)
