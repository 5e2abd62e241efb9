"""Normals of clouds that have none.

Legend: B clouds, n points.
"""

import numpy as np

NEIGHBORS = 16  # of a point, from which its normal is estimated


def estimate_normals(points: np.ndarray) -> np.ndarray:
    """Estimate unit normals of clouds (B, n, 3): the flattest direction of each point's 16 neighbours, away from the centre."""
    import torch  # Here, because only some conversions need it.

    from extensions import knn

    centred = points - points.mean(axis=1, keepdims=True)
    extent = np.abs(centred).max(axis=(1, 2), keepdims=True)
    clouds = torch.from_numpy((centred / np.where(extent > 0, extent, 1.0)).astype(np.float32))
    _, idx = knn(clouds, clouds, min(NEIGHBORS, points.shape[1]))
    near = centred[np.arange(len(points))[:, None, None], idx.numpy()]  # (B, n, 16, 3)
    near = near - near.mean(axis=2, keepdims=True)
    _, directions = np.linalg.eigh(near.swapaxes(2, 3) @ near)
    normals = directions[..., 0]  # (B, n, 3)
    inward = (normals * centred).sum(-1, keepdims=True) < 0
    return np.where(inward, -normals, normals)
