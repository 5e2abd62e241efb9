"""Point-cloud ops: sampling, neighbour search, gathering, interpolation, Chamfer and earth mover's distance, attention.

Every op is `torch.ops.m2ae.<name>` with a reference in plain PyTorch; a compiled library adds kernels to it.
See README.md.
"""

from .attention import attention
from .chamfer import chamfer_distance, chamfer_loss
from .emd import emd
from .fused.check import fused_ready
from .indexing import gather, group, three_interpolate
from .loader import backend
from .mini_pointnet import mini_pointnet
from .neighbors import ball_query, knn, three_nn
from .ordering import near_first, visible_first
from .patches import (
    group_max,
    join_rows,
    lift_rows,
    lift_rows_sums,
    norm_relu,
    peak_backward,
    peak_sums,
    spread_winners,
)
from .rows import norm_relu_backward, norm_relu_sums, row_sums
from .sampling import fps, fps_nested

__all__ = [
    "attention",
    "backend",
    "ball_query",
    "chamfer_distance",
    "chamfer_loss",
    "emd",
    "fps",
    "fps_nested",
    "fused_ready",
    "gather",
    "group",
    "group_max",
    "join_rows",
    "knn",
    "lift_rows",
    "lift_rows_sums",
    "mini_pointnet",
    "near_first",
    "norm_relu",
    "norm_relu_backward",
    "norm_relu_sums",
    "peak_backward",
    "peak_sums",
    "row_sums",
    "spread_winners",
    "three_interpolate",
    "three_nn",
    "visible_first",
]
