"""The package pointnet2_ops: its parts as attributes, as the published one has them."""

from . import pointnet2_ext as _ext
from . import pointnet2_modules, pointnet2_utils
from .pointnet2_version import __version__

__all__ = ["__version__", "_ext", "pointnet2_modules", "pointnet2_utils"]
