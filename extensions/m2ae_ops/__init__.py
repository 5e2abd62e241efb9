"""Point-cloud ops: sampling, neighbour search, gathering, interpolation, distances between clouds, and layers of masked autoencoders.

Every function checks its arguments, has a plain PyTorch form in `reference/` and takes the fastest form that works where it runs.
See README.md.
"""

from .attention import attention
from .chamfer import chamfer_distance, chamfer_loss
from .embedding import patch_embed
from .emd import emd
from .indexing import gather, group, three_interpolate
from .loader import backend
from .neighbors import ball_query, knn, three_nn
from .normalization import batch_norm
from .ordering import along_a_curve, near_first, visible_first
from .pooling import peak_and_mean
from .sampling import fps

__all__ = [
    "along_a_curve",
    "attention",
    "backend",
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
