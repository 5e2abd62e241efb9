"""Masks: pure functions from a generator, and what else a method goes by, to `masked` (B, G) bool, True = hidden.

Shapes: `B` batch, `G` groups; lists are indexed by scale, 0 = finest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from extensions import gather, knn
from models.layers.group import Pyramid
from utils.device import send
from utils.dist import rank, world_size


def random_mask(batch: int, groups: int, ratio: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Hide exactly int(ratio * G) groups of each sample, chosen uniformly.

    Drawn for the global batch: every process draws the same numbers and keeps its own rows.

    Args:
        batch: samples of this process; every process has as many.

    Returns (B, G) bool on the generator's device (CPU without one).
    """
    device = generator.device if generator is not None else "cpu"
    scores = torch.rand(batch * world_size(), groups, generator=generator, device=device)
    ranks = scores[batch * rank() : batch * (rank() + 1)].argsort(dim=1).argsort(dim=1)
    return ranks < int(ratio * groups)


def block_mask(centers: Tensor, ratio: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Hide the int(ratio * G) groups of each sample whose centres are nearest to one of them, chosen uniformly.

    Drawn for the global batch, as `random_mask`.

    Args:
        centers: (B, G, 3).

    Returns (B, G) bool on the device of the centres.
    """
    B, G, _ = centers.shape
    device = generator.device if generator is not None else "cpu"
    seeds = torch.randint(G, (B * world_size(),), generator=generator, device=device)[B * rank() : B * (rank() + 1)]
    seed_centers = gather(centers, send(seeds, centers.device).unsqueeze(1))  # (B, 1, 3)
    _, nearest = knn(seed_centers, centers, int(ratio * G))  # (B, 1, M)
    masked = torch.zeros(B, G, dtype=torch.bool, device=centers.device)
    return masked.scatter_(1, nearest.squeeze(1), True)


def image_guided_mask(
    saliency: Tensor, ratio: float, *, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Hide exactly int(ratio * G) groups of each sample; the more salient a group, the more often it stays visible.

    Groups are drawn without replacement with probabilities softmax(saliency / temperature), and the first ones drawn are visible
    (Zhang et al. 2023, Sec. 3.2). The draw is that of `torch.multinomial`, for the global batch: every process draws the same numbers and
    keeps its own rows.

    Args:
        saliency: (B, G); every process has as many samples.
        temperature: 1 as published, which is nearly uniform where saliency is attention; lower follows saliency more.

    Returns (B, G) bool on the device of the saliency.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"image_guided_mask: temperature is {temperature}; it must be above 0")
    B, G = saliency.shape
    device = generator.device if generator is not None else "cpu"
    races = torch.empty(B * world_size(), G, device=device).exponential_(generator=generator)
    races = send(races[B * rank() : B * (rank() + 1)], saliency.device)
    # The order of probability / race, as logarithms: at low temperatures probabilities would be zero in fp32.
    favour = (saliency.float() - saliency.float().amax(1, keepdim=True)) / temperature - races.log()
    drawn = favour.argsort(1, descending=True)  # (B, G)
    masked = torch.ones(B, G, dtype=torch.bool, device=saliency.device)
    return masked.scatter_(1, drawn[:, : G - int(ratio * G)], False)


def capacities(pyramid: Pyramid, shown: int) -> list[int]:
    """Return the most groups of each scale that can be visible, finest first: all members of the visible groups above.

    Args:
        shown: most visible groups of the coarsest scale.
    """
    most = [shown]
    for idx, below in zip(reversed(pyramid.idx), reversed(pyramid.centers[:-1]), strict=False):
        most.insert(0, min(below.shape[1], most[0] * idx.shape[2]))
    return most


def curriculum(epoch: int, epochs: int, fraction: float, *, half: bool = False) -> float:
    """Return which part of the hidden patches is chosen by a guide in an epoch, the others being random.

    It grows linearly, from `fraction / epochs` in epoch 0 to `fraction` in the last one (GeoMask3D, released code).

    Args:
        half: reach `fraction` after half of the epochs and stay there.
    """
    progress = (epoch + 1) / (epochs / 2) if half else (epoch + 1) / epochs
    return fraction * min(progress, 1.0)


def guided_mask(scores: Tensor, count: int, guided: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Hide the `guided` groups with the highest scores of each sample, and random others up to `count`.

    Drawn for the global batch, as `random_mask`. Of equal scores the lowest index comes first.

    Args:
        scores: (B, G), any order of magnitude; with `guided` 0 they do not matter.
        count: groups to hide in each sample, of them `guided` by score.

    Returns (B, G) bool on the device of the scores.
    """
    B, G = scores.shape
    device = generator.device if generator is not None else "cpu"
    priority = torch.rand(B * world_size(), G, generator=generator, device=device)[B * rank() : B * (rank() + 1)]
    hardest = scores.argsort(dim=1, descending=True, stable=True)[:, :guided]
    priority = send(priority, scores.device).scatter(1, hardest, -1.0)
    return priority.argsort(dim=1).argsort(dim=1) < count


def back_project(masked: Tensor, member_idx: Sequence[Tensor], num_groups: Sequence[int], *, flat_token: bool = False):
    """Carry the mask of the coarsest scale down: a group is visible if and only if a visible group above it holds it.

    Multi-scale masking of Zhang et al. 2022, Sec. 3.2. Groups that are in no neighbourhood of the scale above are masked.

    Args:
        masked: (B, G_coarsest) bool.
        member_idx: `Pyramid.idx`, one (B, G_s, K_s) a scale.
        flat_token: reproduce a published bug: where any group above is masked, the first group of the first sample of the batch
            becomes visible, whatever its mask says. One name of `legacy`.

    Returns:
        list of (B, G_s) bool, finest scale first; the last one is `masked`.
    """
    scales = [masked]
    for scale in range(len(num_groups) - 1, 0, -1):
        above = scales[0]
        B, _, K = member_idx[scale].shape
        votes = (~above).to(torch.float32).unsqueeze(-1).expand(-1, -1, K).reshape(B, -1)  # (B, G*K)
        held = torch.zeros(B, num_groups[scale - 1], device=masked.device)
        held.scatter_add_(1, member_idx[scale].reshape(B, -1), votes)
        below = held == 0
        if flat_token:
            below[0, 0] &= ~above.any()
        scales.insert(0, below)
    return scales
