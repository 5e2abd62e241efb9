"""The module names that published code of this field imports, on top of this package's ops.

    python -m m2ae_ops.compat run [--device cpu] [--shims] main.py ...       # from inside another repository

or, in a program of one's own, `m2ae_ops.compat.install()` before the imports. See ALIASES in hook.py for the names.
"""

from .cpu_device import map_cuda_to_cpu
from .hook import ALIASES, install

__all__ = ["ALIASES", "install", "map_cuda_to_cpu"]
