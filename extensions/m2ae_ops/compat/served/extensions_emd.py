"""extensions.emd: both distances that published code has under this name, the soft matching and the auction."""

from .earth_mover import EarthMoverDistanceFunction, earth_mover_distance
from .emd_module import emdFunction, emdModule

__all__ = ["EarthMoverDistanceFunction", "earth_mover_distance", "emd", "emdFunction", "emdModule"]
emd = earth_mover_distance
