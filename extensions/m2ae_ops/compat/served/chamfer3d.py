"""The package chamfer3D: its part as an attribute."""

from . import dist_chamfer_3d as dist_chamfer_3D

__all__ = ["dist_chamfer_3D"]
