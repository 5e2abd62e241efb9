"""Models by registered NAME, and the weights that go into them.

A method is a file in this folder: all of them are imported here, and register their NAMEs.
"""

import importlib
import pkgutil
from pathlib import Path

from models.registry import MODELS
from models.tuning import apply_tuning
from models.weights import load_weights
from utils.errors import UserError

__all__ = ["MODELS", "build_model", "load_weights"]


def import_methods(folder: Path = Path(__file__).parent, package: str = __name__) -> None:
    """Import every module of a package's folder.

    Raises:
        UserError: naming the file that does not import, or that registers a NAME that another one has.
    """
    for module in sorted(pkgutil.iter_modules([str(folder)]), key=lambda module: module.name):
        try:
            importlib.import_module(f"{package}.{module.name}")
        except Exception as error:
            raise UserError(
                f"{folder / module.name}.py: cannot be imported ({type(error).__name__}: {error}); repair or remove the file"
            ) from error


def build_model(config):
    """Build a model from its configuration: a mapping or dataclass whose NAME is registered, published class names included.

    With the keys `tune` it is tuned: its encoder is frozen, and parts are inserted that train.

    Raises:
        UserError: unknown NAME or key, with the close ones; a value of the wrong type.
    """
    return apply_tuning(MODELS.build(config))


import_methods()
