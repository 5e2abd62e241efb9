"""From features to what can be shown: colours of principal axes, similarities, neighbours, maps of the set.

Shapes: `M` clouds, `P` patches, `N` points, `C` channels, `k` axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from extensions import three_nn

KEPT = 32  # axes that similarities on the page are computed from
SHOWN = (0.01, 0.99)  # quantiles of a principal axis that become the ends of its colour channel
FEWEST_ON_MAP = 5  # clouds; t-SNE of fewer says nothing
PERPLEXITY = 30.0


@dataclass
class Axes:
    """Principal axes of the patches of all clouds at one scale.

    Attributes:
        mean: (C,), of all patches.
        rows: (k, C), unit vectors, the widest spread first; the largest entry of each is positive.
        share: (k,), part of the variance along each.
        low, high: (3,), ends of the colour channels along the first three.
    """

    mean: np.ndarray
    rows: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def reduce(self, features: np.ndarray) -> np.ndarray:
        """Project features (P, C) on the axes: (P, k) float32."""
        return ((features.astype(np.float64) - self.mean) @ self.rows.T).astype(np.float32)

    def colors(self, features: np.ndarray) -> np.ndarray:
        """Return features (P, C) as colours (P, 3) in 0-1: red, green, blue are the first three axes."""
        scores = self.reduce(features)[:, :3]
        scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
        width = self.high - self.low
        shares = (scores - self.low) / np.where(width > 0, width, 1)
        return np.where(width > 0, np.clip(shares, 0, 1), 0.5).astype(np.float32)


def principal_axes(features: Sequence[np.ndarray], count: int = KEPT) -> Axes:
    """Find the principal axes of the patches (P, C) of several clouds together, at most `count`."""
    rows = np.concatenate(features).astype(np.float64)
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    values, axes = np.maximum(values[::-1], 0)[:count], vectors.T[::-1][:count]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    scores = np.zeros((len(rows), 3))
    scores[:, : len(axes[:3])] = (rows - mean) @ axes[:3].T
    low, high = np.quantile(scores, SHOWN, axis=0)
    total = ((rows - mean) ** 2).sum() / len(rows)
    # What rounding leaves of an axis without spread is no colour.
    flat = high - low <= 1e-6 * np.sqrt(max(total, 1e-30))
    return Axes(mean, axes, values / max(total, 1e-30), low, np.where(flat, low, high))


def interpolate(points: np.ndarray, centers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Carry values (P, C) at centres (P, 3) over to points (N, 3): mean of the three nearest, weighted by inverse distance.

    Exact where a point is a centre.
    """
    squared, idx = three_nn(
        *(torch.from_numpy(np.ascontiguousarray(part, np.float32))[None] for part in (points, centers))
    )
    distance, idx = squared[0].double().sqrt().numpy(), idx[0].numpy()
    with np.errstate(divide="ignore"):
        weight = 1 / distance
    at_center = np.isinf(weight).any(1)
    weight[at_center] = 0
    weight[at_center, 0] = 1  # the nearest comes first
    weight /= weight.sum(1, keepdims=True)
    return (values[idx] * weight[..., None]).sum(1).astype(np.float32)


def cosine(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosine of the angle between query (C,) and each of rows (P, C), in -1 to 1; 0 for a row of zeros."""
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return np.where(length > 0, rows @ query / np.where(length > 0, length, 1), 0).clip(-1, 1).astype(np.float32)


def neighbours(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the clouds whose features (M, C) are most similar to each, itself left out: indices and cosines (M, count or M - 1)."""
    near = np.stack([cosine(row, features) for row in features])
    ranks = near.copy()
    np.fill_diagonal(ranks, -np.inf)
    order = np.argsort(-ranks, axis=1, kind="stable")[:, : min(count, len(features) - 1)]
    return order, np.take_along_axis(near, order, axis=1)


def maps(features: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Lay clouds out by their features (M, C): name -> (M, 2), "tsne", and "umap" where that package is installed.

    Empty where there are fewer than `FEWEST_ON_MAP` clouds.
    """
    if len(features) < FEWEST_ON_MAP:
        return {}
    from sklearn.manifold import TSNE

    spread = min(PERPLEXITY, (len(features) - 1) / 3)
    found = {"tsne": TSNE(perplexity=spread, init="random", random_state=seed).fit_transform(features)}
    try:
        from umap import UMAP
    except ImportError:
        return found
    near = min(15, len(features) - 1)
    return found | {"umap": UMAP(n_neighbors=near, init="random", random_state=seed).fit_transform(features)}
