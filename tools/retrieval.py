"""Find the cloud that a picture shows: how well two kinds of features agree.

Shapes: `M` pairs, `F` features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(image_features: Tensor, cloud_features: Tensor) -> Tensor:
    """Return the cosines (M, M) of images (rows) and clouds (columns)."""
    return F.normalize(image_features.float(), dim=1) @ F.normalize(cloud_features.float(), dim=1).T


def retrieval(cosines: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """Score retrieval from image to cloud, in percent, and what guessing would reach.

    Args:
        cosines: (M, M), row i and column i belong together. A cloud that is as near as the right one counts as nearer.
        labels: (M,) classes, for the share of images whose nearest cloud is of their class.
    """
    M = len(cosines)
    right = cosines.diagonal().unsqueeze(1)
    place = (cosines >= right).sum(1)  # 1 = the nearest
    found = {f"top {k}": 100 * (place <= k).double().mean().item() for k in (1, 5)}
    found |= {f"top {k}, chance": 100 * min(k / M, 1.0) for k in (1, 5)}
    found["median place"] = place.double().median().item()
    if labels is not None:
        found["same class"] = 100 * (labels[cosines.argmax(1)] == labels).double().mean().item()
        shares = torch.bincount(labels).double() / M
        found["same class, chance"] = 100 * shares.square().sum().item()
    return found


def same_class(cosines: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return how often the nearest other cloud is of the same class, in percent, and how often a random one is.

    Args:
        cosines: (M, M) of clouds, M > 1; the diagonal is not read.
        labels: (M,) classes.
    """
    M = len(labels)
    nearest = cosines.clone().fill_diagonal_(-torch.inf).argmax(1)
    others = torch.bincount(labels)[labels].double() - 1  # of the same class
    return 100 * (labels[nearest] == labels).double().mean().item(), 100 * (others / (M - 1)).mean().item()
