"""Other packages, called the way their own documentation does; all are imported when they are called.

Each uses as many threads as PyTorch is set to (`torch.get_num_threads()`), through its own setting or, where it takes one cloud at a
time, through a pool over the clouds. Shapes: `B` clouds, `N` points, `Q` queries, `K` neighbours.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

TREE_OPTIONS = (
    ("workers", {}),
    ("workers, unbalanced tree", {"balanced": False}),
    ("pool", {"pool": True}),
    ("pool, unbalanced tree", {"pool": True, "balanced": False}),
)
"""cKDTree spreads its queries over `workers`, but builds on one thread; a pool over the clouds spreads both."""


def quickfps(points: Tensor, samples: int, h: int | None = None) -> Tensor:
    """Return (B, S) int64, started at index 0; `h` is the height of the tree of buckets."""
    import torch_quickfps

    return torch_quickfps.sample_idx(points, samples, h=h, start_idx=0)


def heights(points: int) -> tuple[tuple[str, dict], ...]:
    """Return the tree heights of quickfps and fpsample worth trying for so many points."""
    return tuple((f"h={h}", {"h": h}) for h in range(1, 10) if 2**h <= points // 2)


def fpsample_line(points: Tensor, samples: int, h: int) -> list:
    """Return B arrays. The package takes one cloud at a time, on one thread: a pool over the clouds came out slower."""
    import fpsample

    return [fpsample.bucket_fps_kdline_sampling(cloud, samples, h=h, start_idx=0) for cloud in points.numpy()]


def torch_fps(points: Tensor, samples: int) -> Tensor:
    """Sample by torch-fps."""
    from torch_fps import farthest_point_sampling

    valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    return farthest_point_sampling(points, valid, samples, random_start=False, validate=False, assume_finite=True)


def torch_cluster_fps(points: Tensor, samples: int) -> Tensor:
    """Sample by torch-cluster."""
    from torch_cluster import fps

    B, N, _ = points.shape
    batch = torch.arange(B, device=points.device).repeat_interleave(N)
    found = fps(points.flatten(0, 1), batch, ratio=samples / N, random_start=False)
    return found.view(B, -1) % N


def torch_cluster_knn(query: Tensor, support: Tensor, k: int) -> Tensor:
    """Search by torch-cluster."""
    from torch_cluster import knn

    (B, Q, _), N = query.shape, support.shape[1]
    owner = torch.arange(B, device=query.device)
    workers = torch.get_num_threads()
    pairs = knn(
        support.flatten(0, 1),
        query.flatten(0, 1),
        k,
        owner.repeat_interleave(N),
        owner.repeat_interleave(Q),
        num_workers=workers,
    )
    return pairs[1].view(B, Q, k) % N


def ckdtree(query: Tensor, support: Tensor, k: int, *, balanced: bool = True, pool: bool = False) -> list:
    """Return B pairs (distances, indices); building the tree is part of it, since every cloud is searched once."""
    from scipy.spatial import cKDTree

    workers = 1 if pool else torch.get_num_threads()

    def search(pair):
        tree = cKDTree(pair[1], balanced_tree=balanced, compact_nodes=balanced)
        return tree.query(pair[0], k, workers=workers)

    return _over_clouds(search, zip(query.numpy(), support.numpy(), strict=True), pool)


def chamfer_ckdtree(a: Tensor, b: Tensor, **options) -> tuple[list, list]:
    """Return nearest distances both ways by trees of scipy."""
    return ckdtree(a, b, 1, **options), ckdtree(b, a, 1, **options)


def sklearn_knn(query: Tensor, support: Tensor, k: int, algorithm: str) -> list:
    """Search by scikit-learn."""
    from sklearn.neighbors import NearestNeighbors

    found = []
    for queries, points in zip(query.numpy(), support.numpy(), strict=True):
        index = NearestNeighbors(n_neighbors=k, algorithm=algorithm, n_jobs=torch.get_num_threads()).fit(points)
        found.append(index.kneighbors(queries))
    return found


def faiss_flat(query: Tensor, support: Tensor, k: int) -> list:
    """Search by a flat index of faiss."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    found = []
    for queries, points in zip(query.numpy(), support.numpy(), strict=True):
        index = faiss.IndexFlatL2(3)
        index.add(points)
        found.append(index.search(queries, k))
    return found


def assignment(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cheapest matching: squared distances (B, N) of the pairs and indices (B, N) into b."""
    from scipy.optimize import linear_sum_assignment

    def solve(cloud):
        return torch.from_numpy(linear_sum_assignment(cloud)[1])

    squares = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)  # (B, N, N)
    idx = torch.stack(_over_clouds(solve, squares.numpy(), pool=True))
    return squares.gather(2, idx.unsqueeze(-1)).squeeze(-1), idx


def pytorch3d_fps(points: Tensor, samples: int) -> Tensor:
    """Sample by PyTorch3D."""
    from pytorch3d.ops import sample_farthest_points

    return sample_farthest_points(points, K=samples)[1]


def pytorch3d_knn(query: Tensor, support: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search by PyTorch3D."""
    from pytorch3d.ops import knn_points

    found = knn_points(query, support, K=k)
    return found.dists, found.idx


def pointnet2_fps(points: Tensor, samples: int) -> Tensor:
    """Sample by pointnet2_ops."""
    from pointnet2_ops.pointnet2_utils import furthest_point_sample

    return furthest_point_sample(points, samples)


def stacked(pairs: list) -> tuple[Tensor, Tensor]:
    """Return (values, int64 indices), each (B, ...), of the pairs of arrays that one-cloud packages give."""
    values, idx = zip(*pairs, strict=True)
    return _stack(values), _stack(idx).long()


def stacked_indices(arrays: list) -> tuple[Tensor]:
    """Return the indices of single clouds as one tensor."""
    return (torch.stack([torch.as_tensor(rows.astype("int64")) for rows in arrays]),)


def _stack(arrays) -> Tensor:
    return torch.stack([torch.as_tensor(array) for array in arrays])


def _over_clouds(call: Callable, clouds, pool: bool) -> list:
    workers = torch.get_num_threads()
    if pool and workers > 1:
        return list(_pool(workers).map(call, clouds))
    return [call(cloud) for cloud in clouds]


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)
