"""The module `emd` that `python setup.py install` in this folder installs."""

from m2ae_ops.compat.served.emd import backward, forward

__all__ = ["backward", "forward"]
