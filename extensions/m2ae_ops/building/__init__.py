"""What turns csrc/ into libraries: the files of PyTorch, the compilers, the commands and how they are run.

Nothing in here imports PyTorch or the rest of this package: `extensions/setup.py` uses it where neither can be imported.
"""

from .errors import BuildError

__all__ = ["BuildError"]
