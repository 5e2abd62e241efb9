"""What a report shows of clouds and their pictures: pairs, similarities, and retrieval from images and from clouds."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.clouds import CloudSet
from tools.report.clouds import GalleryItem
from tools.report.markup import table
from tools.report.page import Section
from tools.report.thumbnails import cloud_picture, matrix_picture, picture, picture_rows
from tools.retrieval import retrieval, same_class, similarity

SHOWN = 256  # pairs that the report evaluates
BATCH = 32  # of the similarity matrix
EXAMPLES, NEAREST = 6, 5
SIDE = 96  # pixels of a picture on the page


@dataclass
class Pairs:
    """Clouds of a set with one picture of each, and their features (M, F).

    Args:
        pictures: (M, 3, S, S) uint8.
        held_out: the set is another one than that of training.
    """

    clouds: CloudSet
    pictures: Tensor
    cloud_features: Tensor
    image_features: Tensor
    held_out: bool

    @property
    def labels(self) -> Tensor | None:
        """The classes (M,) of the clouds, or None."""
        return None if self.clouds.labels is None else torch.from_numpy(self.clouds.labels)

    @property
    def between_clouds(self) -> Tensor:
        """The cosines (M, M) of clouds; -inf of a cloud with itself."""
        return similarity(self.cloud_features, self.cloud_features).fill_diagonal_(-torch.inf)

    @property
    def cosines(self) -> Tensor:
        """The cosines (M, M) of images, in rows, and clouds."""
        return similarity(self.image_features, self.cloud_features)

    def caption(self, index: int) -> str:
        """Return the class of a cloud, else its name."""
        if self.clouds.labels is not None and self.clouds.class_names:
            return self.clouds.class_names[int(self.clouds.labels[index])]
        return self.clouds.names[index] if self.clouds.names else f"#{index}"

    def image(self, index: int) -> str:
        """Return the picture of a cloud as HTML."""
        return picture(
            self.pictures[index].permute(1, 2, 0).numpy(), side=SIDE, alt=f"picture of {self.caption(index)}"
        )

    def cloud(self, index: int) -> str:
        """Return a drawing of a cloud as HTML."""
        image = cloud_picture(self.clouds.points[index], self.clouds.up_axis)
        return picture(image, side=SIDE, alt=f"cloud, {self.caption(index)}")


def pair_sections(pairs: Pairs) -> list[Section]:
    """Return three sections: pairs, the similarity matrix of a batch, and how well retrieval works."""
    return [_pairs(pairs), _matrix(pairs), _retrieval(pairs)]


def _chosen(pairs: Pairs) -> np.ndarray:
    """Return examples of as many classes as there are: sets are often sorted by class."""
    count = len(pairs.clouds)
    if pairs.clouds.labels is None:
        return np.unique(np.linspace(0, count - 1, min(EXAMPLES, count)).astype(int))
    labels = np.asarray(pairs.clouds.labels)
    classes, first = np.unique(labels, return_index=True)
    turn = np.arange(count) - first[np.searchsorted(classes, labels)]  # of a sorted set, which one of its class
    spread = np.argsort(turn, kind="stable")[: len(classes)]
    spread = spread[np.unique(np.linspace(0, len(spread) - 1, min(EXAMPLES, len(spread))).astype(int))]
    rest = np.setdiff1d(np.arange(count), spread)[: max(0, EXAMPLES - len(spread))]
    return np.concatenate([spread, rest])


def _source(pairs: Pairs) -> str:
    where = f"{len(pairs.clouds)} clouds of {pairs.clouds.name} ({pairs.clouds.subset})"
    return f"{where}, {'held out' if pairs.held_out else 'which were trained on'}"


def _pairs(pairs: Pairs) -> Section:
    chosen = [int(index) for index in _chosen(pairs)]
    images = [(pairs.image(index), pairs.caption(index)) for index in chosen]
    clouds = [(pairs.cloud(index), "its cloud") for index in chosen]
    return Section(
        "Clouds and their pictures", picture_rows([images, clouds]), f"One picture of each, from {_source(pairs)}."
    )


def _matrix(pairs: Pairs) -> Section:
    cosines = pairs.cosines[:BATCH, :BATCH].numpy()
    low, high = float(cosines.min()), float(cosines.max())
    size = len(cosines)
    body = matrix_picture(
        cosines,
        low=low,
        high=high,
        side=12 * size,
        alt=f"cosines of {size} images and {size} clouds",
        axes=("image", "cloud"),
    )
    own, others = np.diag(cosines), cosines[~np.eye(size, dtype=bool)]
    lead = (
        f"Cosines of {size} images (rows) and clouds (columns), dark {low:.2f} to light {high:.2f}; pairs are on the diagonal: "
        f"{own.mean():.3f} on average, {others.mean() if size > 1 else float('nan'):.3f} elsewhere."
    )
    return Section("Similarity of images and clouds", body, lead)


def _retrieval(pairs: Pairs) -> Section:
    found = retrieval(pairs.cosines, pairs.labels)
    rows = [
        (f"image to cloud: {name}", f"{found[name]:.1f} %", f"{found[f'{name}, chance']:.1f} %")
        for name in ("top 1", "top 5", "same class")
        if name in found
    ]
    if pairs.labels is not None and len(pairs.clouds) > 1:
        share, chance = same_class(pairs.between_clouds, pairs.labels)
        rows.append(("cloud to other cloud: same class", f"{share:.1f} %", f"{chance:.1f} %"))
    body = f'<div class="panel">{table(("nearest by features", "found", "guessing"), rows)}</div>'
    lead = (
        f"Among {_source(pairs)}; the median place of the right cloud is {found['median place']:.0f}. The last rows of the gallery show "
        "the nearest clouds of some pictures, and of some clouds."
    )
    return Section("Retrieval", body, lead)


def retrieval_items(pairs: Pairs) -> list[GalleryItem]:
    """Return gallery rows: pictures with their nearest clouds, marked where it is the right one, then clouds with their nearest ones."""
    chosen = [int(index) for index in _chosen(pairs)]
    items = []
    for index in chosen:
        picture_of = pairs.pictures[index].permute(1, 2, 0).numpy()
        near = _nearest(pairs, pairs.cosines[index], right=index)
        items.append(
            GalleryItem(f"picture: {pairs.caption(index)}", near, pairs.clouds.up_axis, pictures={"query": picture_of})
        )
    for index in chosen if len(pairs.clouds) > 1 else []:
        query = {"query": pairs.clouds.points[index]}
        near = _nearest(pairs, pairs.between_clouds[index])
        items.append(GalleryItem(f"cloud: {pairs.caption(index)}", query | near, pairs.clouds.up_axis))
    return items


def _nearest(pairs: Pairs, cosines: Tensor, right: int | None = None) -> dict[str, np.ndarray]:
    """Return the clouds with the largest of the cosines (M,), by what is said of them."""
    order = cosines.argsort(descending=True, stable=True)[:NEAREST].tolist()
    known = [index for index in order if torch.isfinite(cosines[index])]  # not the query itself
    return {
        f"{place}. {pairs.caption(index)}, {cosines[index]:.2f}{' ✓' if index == right else ''}": pairs.clouds.points[
            index
        ]
        for place, index in enumerate(known, 1)
    }
