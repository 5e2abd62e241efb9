"""The ops in vectorised PyTorch, the way people write them; several forms each, since which one is quickest differs.

Shapes: `B` batch, `N` points, `Q` queries, `M` support points, `K` neighbours, `L` patches, `C` channels.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def fps_loop(points: Tensor, samples: int) -> Tensor:
    """Return farthest points (B, S), a loop over the samples that is vectorised over the clouds."""
    B, N, _ = points.shape
    clouds = torch.arange(B, device=points.device)
    idx = torch.zeros(B, samples, dtype=torch.int64, device=points.device)
    nearest = torch.full((B, N), torch.inf, device=points.device)
    for step in range(1, samples):
        last = points[clouds, idx[:, step - 1]]  # (B, 3)
        nearest = torch.minimum(nearest, (points - last[:, None]).square().sum(-1))
        idx[:, step] = nearest.argmax(1)
    return idx


def cdist_topk(query: Tensor, support: Tensor, k: int, mode: str = "use_mm_for_euclid_dist_if_necessary"):
    """Return distances and indices (B, Q, k) of the nearest."""
    return torch.cdist(query, support, compute_mode=mode).topk(k, largest=False)


def ball_query_sorted(query: Tensor, support: Tensor, radius: float, k: int) -> Tensor:
    """Return the first k positions inside the radius (B, Q, k) by sorting all of them, the form most code bases copy."""
    return _pad(_inside(query, support, radius).sort(-1).values[..., :k], support.shape[1])


def ball_query_topk(query: Tensor, support: Tensor, radius: float, k: int) -> Tensor:
    """Find neighbours within a radius by the smallest indices."""
    return _pad(_inside(query, support, radius).topk(k, largest=False).values, support.shape[1])


def _inside(query: Tensor, support: Tensor, radius: float) -> Tensor:
    M = support.shape[1]
    distance = torch.cdist(query, support)  # (B, Q, M)
    return torch.where(distance < radius, torch.arange(M, device=query.device), M)


def _pad(idx: Tensor, M: int) -> Tensor:
    first = idx[..., :1]
    idx = torch.where(idx == M, first, idx)
    return torch.where(idx == M, 0, idx)


def square_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances (L, n, m)."""
    return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)


def square_written(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances, written out."""
    x, y, z = (a[..., None, axis] - b[:, None, :, axis] for axis in range(3))
    return x * x + y * y + z * z


def square_cdist(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances by torch.cdist."""
    return torch.cdist(a, b).square()


def square_product(a: Tensor, b: Tensor) -> Tensor:
    """Return |a|^2 + |b|^2 - 2 a b, by a batched matrix product."""
    return torch.baddbmm(a.square().sum(-1, keepdim=True) + b.square().sum(-1)[:, None], a, b.transpose(1, 2), alpha=-2)


def _by_amin(square: Callable, a: Tensor, b: Tensor) -> Tensor:
    distance = square(a, b)
    return distance.amin(2).mean() + distance.amin(1).mean()


def _by_min(square: Callable, a: Tensor, b: Tensor) -> Tensor:
    distance = square(a, b)
    return distance.min(2).values.mean() + distance.min(1).values.mean()


def _by_pairs(square: Callable, a: Tensor, b: Tensor) -> Tensor:
    """Search without gradient, then differentiate the chosen pairs alone."""
    with torch.no_grad():
        distance = square(a, b)
        i1, i2 = distance.argmin(2), distance.argmin(1)
    forth = (a - b.gather(1, i1.unsqueeze(-1).expand(-1, -1, 3))).square().sum(-1)
    back = (b - a.gather(1, i2.unsqueeze(-1).expand(-1, -1, 3))).square().sum(-1)
    return forth.mean() + back.mean()


SQUARES = {
    "broadcast": square_broadcast,
    "written out": square_written,
    "cdist": square_cdist,
    "matmul": square_product,
}
REDUCTIONS = {"amin": _by_amin, "min": _by_min, "chosen pairs": _by_pairs}


def chamfer_losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return name -> loss of two batches of patches: mean squared nearest distance one way plus the other."""
    return {
        f"{square}, {reduction}": lambda a, b, square=SQUARES[square], reduce=REDUCTIONS[reduction]: reduce(
            square, a, b
        )
        for square in SQUARES
        for reduction in REDUCTIONS
    }


@functools.cache
def compiled_losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the forms worth compiling: torch.cdist would stay one opaque call, and `min` becomes the same loop as `amin`.

    Broadcasting with `amin` is left out too: its compiled backward takes seconds, fifty times its plain form. All of them are one
    function to the compiler, which keeps eight variants of a function and would run a ninth uncompiled: `fullgraph` makes
    that an error, and the cache lets several tables share them.
    """
    names = (
        "broadcast, chosen pairs",
        "written out, amin",
        "written out, chosen pairs",
        "matmul, amin",
        "matmul, chosen pairs",
    )
    return {name: torch.compile(chamfer_losses()[name], dynamic=False, fullgraph=True) for name in names}


def chamfer_amin(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest distances both ways, without saying which point is the nearest."""
    distance = torch.cdist(a, b)
    return distance.amin(2), distance.amin(1)


def chamfer_min(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return nearest distances both ways by minima with indices."""
    distance = torch.cdist(a, b)
    (d1, i1), (d2, i2) = distance.min(2), distance.min(1)
    return d1, d2, i1, i2


def rows_by_index(values: Tensor, idx: Tensor) -> Tensor:
    """Return values (B, N, C) at idx (B, Q, K) as (B, Q, K, C)."""
    return values[torch.arange(len(values), device=values.device)[:, None, None], idx]


def rows_by_gather(values: Tensor, idx: Tensor) -> Tensor:
    """Return rows at indices by `gather`."""
    B, C = values.shape[0], values.shape[-1]
    return values.gather(1, idx.reshape(B, -1, 1).expand(-1, -1, C)).view(*idx.shape, C)


def rows_by_flat_index(values: Tensor, idx: Tensor) -> Tensor:
    """Gather with positions counted over the whole batch, as the published grouping does."""
    return values.flatten(0, 1)[_flat(values, idx)].view(*idx.shape, values.shape[-1])


def rows_by_index_select(values: Tensor, idx: Tensor) -> Tensor:
    """Return rows at indices by `index_select`."""
    return values.flatten(0, 1).index_select(0, _flat(values, idx)).view(*idx.shape, values.shape[-1])


def rows_by_embedding(values: Tensor, idx: Tensor) -> Tensor:
    """Return rows at indices by `embedding`."""
    return F.embedding(_flat(values, idx), values.flatten(0, 1)).view(*idx.shape, values.shape[-1])


def _flat(values: Tensor, idx: Tensor) -> Tensor:
    B, N, _ = values.shape
    return (idx + N * torch.arange(B, device=idx.device)[:, None, None]).flatten()


ROWS = {
    "indexing": rows_by_index,
    "gather": rows_by_gather,
    "flat indexing": rows_by_flat_index,
    "index_select": rows_by_index_select,
    "embedding": rows_by_embedding,
}


def interpolate(rows: Callable, values: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum (B, N, C) of three rows each."""
    return (rows(values, idx) * weight.unsqueeze(-1)).sum(2)


def group_pyramid(sample: Callable[[Tensor, int], Tensor], points: Tensor, num_groups, group_sizes) -> list[Tensor]:
    """Return centres and neighbourhoods of all scales, one search and one sampling a scale, as the published code does."""
    levels = []
    for groups, size in zip(num_groups, group_sizes, strict=True):
        centers = points.gather(1, sample(points, groups).unsqueeze(-1).expand(-1, -1, 3))  # (B, G, 3)
        _, idx = cdist_topk(centers, points, size)
        levels += [centers, rows_by_gather(points, idx) - centers.unsqueeze(2)]
        points = centers
    return levels
