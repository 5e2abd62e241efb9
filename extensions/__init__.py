"""Custom ops of this project; the package `m2ae_ops` inside can also be installed on its own."""

from .m2ae_ops import (
    ball_query,
    chamfer_distance,
    emd,
    fps,
    fps_nested,
    gather,
    group,
    knn,
    row_sums,
    three_interpolate,
    three_nn,
)

__all__ = [
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
