"""The module `chamfer` that `python setup.py install` in this folder installs."""

from m2ae_ops.compat.served.chamfer import backward, forward

__all__ = ["backward", "forward"]
