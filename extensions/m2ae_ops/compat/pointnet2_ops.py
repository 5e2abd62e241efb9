"""The package pointnet2_ops: its parts as attributes, as the published one has them."""

from . import pointnet2_ext as _ext
from . import pointnet2_modules, pointnet2_utils

__version__ = "3.0.0"
__all__ = ["_ext", "pointnet2_modules", "pointnet2_utils"]
