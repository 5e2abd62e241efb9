"""Custom ops of this project; the package `m2ae_ops` inside can also be installed on its own."""

from .m2ae_ops import (
    attention,
    ball_query,
    batch_norm,
    chamfer_distance,
    chamfer_loss,
    emd,
    fps,
    gather,
    group,
    knn,
    near_first,
    patch_embed,
    peak_and_mean,
    three_interpolate,
    three_nn,
    visible_first,
)

__all__ = [
    "attention",
    "ball_query",
    "batch_norm",
    "chamfer_distance",
    "chamfer_loss",
    "emd",
    "fps",
    "gather",
    "group",
    "knn",
    "near_first",
    "patch_embed",
    "peak_and_mean",
    "three_interpolate",
    "three_nn",
    "visible_first",
]
