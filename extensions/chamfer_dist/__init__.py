"""The Chamfer losses under the import path of published code."""

from ..m2ae_ops.compat.served.chamfer_dist import (
    ChamferDistanceL1,
    ChamferDistanceL1_PM,
    ChamferDistanceL2,
    ChamferDistanceL2_split,
    ChamferFunction,
)

__all__ = [
    "ChamferDistanceL1",
    "ChamferDistanceL1_PM",
    "ChamferDistanceL2",
    "ChamferDistanceL2_split",
    "ChamferFunction",
]
