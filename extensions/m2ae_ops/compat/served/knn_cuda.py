"""The module knn_cuda: nearest neighbours with distances that are not squared. Shape legend: C coordinates."""

import torch
from torch import nn

from ... import knn as nearest

__all__ = ["KNN", "knn"]
QUERIES_AT_A_TIME = 256  # bounds the memory for more than three coordinates


def knn(ref: torch.Tensor, query: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and int64 indices (k, M) of the neighbours of query (C, M) in ref (C, N), nearest first."""
    dist, idx = _search(ref.t()[None], query.t()[None], k)
    return dist[0].t().contiguous(), idx[0].t().contiguous()


class KNN(nn.Module):
    """Find the k nearest points of a reference cloud, without gradient.

    Args:
        k: number of neighbours.
        transpose_mode: True: ref (B, N, C) and query (B, M, C) give (B, M, k); False: ref (B, C, N) and query (B, C, M)
            give (B, k, M).
    """

    def __init__(self, k, transpose_mode=False):
        super().__init__()
        self.k, self._t = k, transpose_mode

    def forward(self, ref: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return distances, ascending and not squared, and int64 indices, lowest index first on equal distances."""
        if self._t:
            return _search(ref, query, self.k)
        dist, idx = _search(ref.transpose(1, 2), query.transpose(1, 2), self.k)
        return dist.transpose(1, 2).contiguous(), idx.transpose(1, 2).contiguous()


@torch.no_grad()
def _search(ref: torch.Tensor, query: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances and indices (B, M, k) for ref (B, N, C) and query (B, M, C)."""
    if ref.dim() != 3 or query.dim() != 3 or ref.shape[0] != query.shape[0] or ref.shape[2] != query.shape[2]:
        raise ValueError(
            f"KNN: ref {tuple(ref.shape)} and query {tuple(query.shape)} must agree in batch size and coordinates; "
            "transpose_mode=True takes (B, N, C), False (B, C, N)"
        )
    missing = 3 - ref.shape[2]
    if missing < 0:
        return _search_features(ref, query, k)
    ref, query = (torch.nn.functional.pad(points, (0, missing)) for points in (ref, query))
    sqdist, idx = nearest(query, ref, k)
    return sqdist.sqrt(), idx


def _search_features(ref: torch.Tensor, query: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Search among more than three coordinates, in plain PyTorch with plain sums of squares."""
    if k > ref.shape[1]:
        raise ValueError(f"KNN: k={k} exceeds the {ref.shape[1]} reference points; lower k")
    found = []
    for part in query.split(QUERIES_AT_A_TIME, dim=1):
        dist = torch.cdist(part, ref, compute_mode="donot_use_mm_for_euclid_dist")  # (B, M, N)
        dist, idx = dist.sort(dim=-1, stable=True)
        found.append((dist[..., :k], idx[..., :k]))
    dist, idx = zip(*found, strict=True)
    return torch.cat(dist, dim=1), torch.cat(idx, dim=1)
