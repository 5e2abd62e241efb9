"""Models, weights and transforms for other programs; an installation has this package as `m2ae`."""

from utils import __version__

__all__ = ["__version__"]
