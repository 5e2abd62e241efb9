"""Squared distances, in the one order of operations that all implementations share.

Shape legend: B batch, Q queries, N points.
"""

import torch

PAIRS_AT_ONCE = 1 << 22
"""Upper bound on the number of pairwise distances held in memory at a time (a few such arrays live together)."""


def to_compute(values: torch.Tensor) -> torch.Tensor:
    """Return `values` in the precision ops compute in: float64 stays, float16 and bfloat16 become float32."""
    return values if values.dtype == torch.float64 else values.float()


def squared_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `(dx*dx + dy*dy) + dz*dz` over the last dimension (3); leading dimensions broadcast.

    Written out so that no backend may contract or reorder it; compiled kernels follow the same order and therefore
    give the same bits.
    """
    dx = a[..., 0] - b[..., 0]
    dy = a[..., 1] - b[..., 1]
    dz = a[..., 2] - b[..., 2]
    return (dx * dx + dy * dy) + dz * dz


def pairwise_chunks(query: torch.Tensor, support: torch.Tensor):
    """Yield `(start, stop, sqdist (B, stop - start, N))` over slices of the queries, NaN replaced by infinity.

    A distance to or from a NaN point is never the smallest, so NaN cannot displace a real neighbour.
    """
    query, support = to_compute(query), to_compute(support)
    B, Q, _ = query.shape
    # A traced graph for any batch has one slice: how many there are must not depend on a size that is not known.
    unknown = isinstance(B, torch.SymInt)
    rows = Q if unknown else max(1, PAIRS_AT_ONCE // max(1, B * support.shape[1]))
    for start in range(0, Q, rows):
        stop = min(start + rows, Q)
        sqdist = squared_distance(query[:, start:stop, None], support[:, None])  # (B, q, N)
        yield start, stop, torch.where(sqdist.isnan(), torch.inf, sqdist)
