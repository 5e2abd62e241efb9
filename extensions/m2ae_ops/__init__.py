"""Point-cloud ops: sampling, neighbour search, gathering, interpolation, Chamfer and earth mover's distance.

Every op is `torch.ops.m2ae.<name>` with a reference in plain PyTorch; a compiled library adds kernels to it.
See README.md.
"""

from .chamfer import chamfer_distance
from .emd import emd
from .indexing import gather, group, three_interpolate
from .loader import backend
from .neighbors import ball_query, knn, three_nn
from .rows import row_sums
from .sampling import fps, fps_nested

__all__ = [
    "backend",
    "ball_query",
    "chamfer_distance",
    "emd",
    "fps",
    "fps_nested",
    "gather",
    "group",
    "knn",
    "row_sums",
    "three_interpolate",
    "three_nn",
]
