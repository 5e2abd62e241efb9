"""Whether a peer computed the same thing: each check returns what agrees, in words, or raises `Disagreement`.

Shapes: `B` clouds, `N` points, `S` samples, `K` neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from extensions import knn


class Disagreement(Exception):
    """The two sides did not compute the same thing, so that comparing their times would mean nothing."""


def same_samples(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare farthest point samples (B, S), by index or, where a peer starts elsewhere, by how well they cover."""
    equal = (ours[0] == theirs[0]).all(1)
    if equal.all():
        return "indices equal"
    points = inputs[0]
    mine, other = (_covering_radius(points, idx) for idx in (ours[0], theirs[0]))
    apart = ((other - mine).abs() / mine).max().item()
    if apart > 0.25 or any(len(row.unique()) < len(row) for row in theirs[0]):
        raise Disagreement(f"covering radius differs by {100 * apart:.1f} %, or samples repeat")
    return f"{_share(equal)} of clouds equal, covering radius within {100 * apart:.1f} %"


def same_neighbors(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare squared distances and indices (B, Q, K)."""
    equal = ours[1] == theirs[1]
    apart = (ours[0] - theirs[0]).abs().max().item()
    if equal.double().mean() < 0.99 or apart > 1e-4:
        raise Disagreement(f"{_share(equal)} of indices equal, squared distances within {apart:.1e}")
    return f"{_share(equal)} of indices equal, squared distances within {apart:.1e}"


def same_indices(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare indices; a form that computes distances by a matrix product may decide a few borderline ones otherwise."""
    equal = ours[0] == theirs[0]
    if equal.double().mean() < 0.99:
        raise Disagreement(f"only {_share(equal)} of indices equal")
    return f"{_share(equal)} of indices equal"


def same_values(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare real tensors by the norm of the difference over the norm: near-ties may send single gradients elsewhere."""
    apart = max(((mine - other).norm() / mine.norm()).item() for mine, other in zip(ours, theirs, strict=True))
    if not apart < 0.02:
        raise Disagreement(f"relative difference of {apart:.1e}")
    return f"within {apart:.1e} of the norm"


def same_groups(inputs: tuple, ours: tuple, theirs: tuple) -> str:
    """Compare centres and neighbourhoods of all scales, entry by entry, given as (B, ...) tensors."""
    near = [((mine - other).abs() < 1e-5) for mine, other in zip(ours, theirs, strict=True)]
    shares = torch.stack([level.double().mean() for level in near])
    if shares.min() < 0.95:
        raise Disagreement(f"only {100 * shares.min():.2f} % of coordinates equal within 1e-5 at one scale")
    return f"at least {100 * shares.min():.3f} % of coordinates equal within 1e-5 at every scale"


def near_optimum(eps: float, share: float | None = None) -> Callable[[tuple, tuple, tuple], str]:
    """Return a check of our matching (cost (B, N), assignment) against the exact one.

    Args:
        eps: what the op promises: no cloud's mean cost is more than this above the least possible one.
        share: how far above it the mean over all clouds may be as a share of the optimum. The promise alone allows a matching
            that is much worse than the best where the best costs little, so a comparison at equal quality needs this too.
    """

    def check(inputs: tuple, ours: tuple, theirs: tuple) -> str:
        places = torch.arange(ours[1].shape[1], device=ours[1].device)
        if not (ours[1].sort(1).values == places).all():
            raise Disagreement("our assignment is not a bijection")
        best = theirs[0].double().mean(1)
        excess = ours[0].double().mean(1) - best  # (B,)
        relative = (excess.mean() / best.mean()).item()
        found = f"mean cost {100 * relative:.3g} % above the optimum, {excess.max():.1e} at most in one cloud"
        if not (-1e-5 * best <= excess).all() or not (excess <= eps).all() or (share is not None and relative > share):
            raise Disagreement(found)
        return f"a bijection, {found}"

    return check


def _covering_radius(points: Tensor, idx: Tensor) -> Tensor:
    """Return (B,) the largest distance of any point to its nearest sample."""
    chosen = torch.stack([cloud[rows] for cloud, rows in zip(points, idx, strict=True)])
    return knn(points, chosen, 1)[0].amax((1, 2)).sqrt()


def _share(equal: Tensor) -> str:
    return "all" if equal.all() else f"{100 * equal.double().mean():.3f} %"
