"""torch._six: what PyTorch offered under this name while it ran on Python 2 too."""

import builtins
import collections.abc as container_abcs
import math

__all__ = ["FileNotFoundError", "container_abcs", "inf", "int_classes", "nan", "string_classes"]
PY3 = PY37 = True
inf, nan = math.inf, math.nan
string_classes, int_classes = (str, bytes), int
FileNotFoundError = builtins.FileNotFoundError
