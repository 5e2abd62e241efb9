"""Neighbour search in plain PyTorch. Shape legend: B batch, Q queries, N support points, K neighbours."""

from typing import Any

import torch

from . import indexing
from .distance import pairwise_chunks, to_compute


def knn(query: torch.Tensor, support: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return squared distances and int64 indices (B, Q, K), ascending, lowest index first on equal distances."""
    sqdists, indices = [], []
    for _, _, sqdist in pairwise_chunks(query, support):
        if sqdist.dtype == torch.float32:
            # Bits of a non-negative float order like the float itself: with the index below them every key is unique,
            # so that a plain top-k follows the tie rule.
            key = (sqdist.view(torch.int32).long() << 32) | torch.arange(sqdist.shape[-1], device=sqdist.device)
            idx = key.topk(k, dim=-1, largest=False, sorted=True).values & 0xFFFFFFFF
        else:
            idx = sqdist.sort(dim=-1, stable=True).indices[..., :k]
        indices.append(idx)
        sqdists.append(sqdist.gather(-1, idx))
    return torch.cat(sqdists, 1), torch.cat(indices, 1)


def three_nn(query: torch.Tensor, support: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the three nearest (B, Q, 3); with fewer support points the nearest repeats at infinite distance."""
    found = min(3, support.shape[1])
    sqdist, idx = knn(query, support, found)
    if found < 3:
        missing = (*idx.shape[:2], 3 - found)
        sqdist = torch.cat([sqdist, sqdist.new_full(missing, torch.inf)], -1)
        idx = torch.cat([idx, idx[..., :1].expand(missing)], -1)
    return sqdist, idx


def ball_query(query: torch.Tensor, support: torch.Tensor, radius: float, k: int) -> torch.Tensor:
    """Return the first `k` indices (B, Q, K) with distance below `radius`, padded with the first one (0 if none)."""
    N = support.shape[1]
    limit = torch.tensor(radius, dtype=to_compute(query[:0]).dtype)
    limit = float(limit * limit)
    positions = torch.arange(N, device=query.device)
    indices = []
    for _, _, sqdist in pairwise_chunks(query, support):
        hits = torch.where(sqdist < limit, positions, N)  # (B, q, N)
        idx = hits.topk(min(k, N), dim=-1, largest=False, sorted=True).values
        first = torch.where(idx[..., :1] < N, idx[..., :1], 0)
        idx = torch.where(idx < N, idx, first)
        if k > N:
            idx = torch.cat([idx, first.expand(*first.shape[:-1], k - N)], -1)
        indices.append(idx)
    return torch.cat(indices, 1)


def pair_gradients(
    grad: torch.Tensor, query: torch.Tensor, support: torch.Tensor, idx: torch.Tensor, *, rows: Any = indexing
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of `squared_distance(query[q], support[idx[q, k]])` weighted by `grad` (B, Q, K).

    The sums run, and come back, in the compute precision. Differentiable any number of times with `idx` held fixed.

    Args:
        rows: what offers `gather` and `gather_backward`: this reference, or `torch.ops.m2ae` for the fastest at hand.
    """
    q, s = to_compute(query), to_compute(support)
    offset = q[:, :, None] - rows.gather(s, idx)
    flow = (2 * grad)[..., None].to(q.dtype) * offset  # (B, Q, K, 3)
    return flow.sum(2), -rows.gather_backward(flow, idx, s.shape[1])
