"""The guide of GeoMask3D on the Point-M2AE backbone is that on the Point-MAE backbone."""

from tools.guides.gm3d import build

__all__ = ["build"]
