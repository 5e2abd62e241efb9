"""The earth mover's distance under the import path of published code.

`extensions.emd` is also the op itself (`from extensions import emd`). Importing this folder puts a module in its place, so
the module can be called like the op.
"""

import sys
from types import ModuleType

from ..m2ae_ops.compat.served.emd_module import emdFunction, emdModule
from ..m2ae_ops.emd import emd as _op

__all__ = ["emdFunction", "emdModule"]


class _CallableModule(ModuleType):
    def __call__(self, *args, **kwargs):
        return _op(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
