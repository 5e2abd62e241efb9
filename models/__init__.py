"""Models by registered NAME, and the weights that go into them."""

from models import (  # noqa: F401  register their NAMEs
    classifier_parts,
    gm3d,
    gm3d_point_m2ae,
    i2p_mae,
    inter_mae,
    point_m2ae,
    point_mae,
    segmenter,
)
from models.registry import MODELS
from models.weights import load_weights

__all__ = ["MODELS", "build_model", "load_weights"]


def build_model(config):
    """Build a model from its configuration: a mapping or dataclass whose NAME is registered, published class names included.

    Raises:
        UserError: unknown NAME or key, with the close ones; a value of the wrong type.
    """
    return MODELS.build(config)
