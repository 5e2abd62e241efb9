"""What every other package builds on: configuration, files, log, processes, devices, seeds."""

from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent  # the repository, or the installed package
IMPORT_ROOT = ROOT.parents[__name__.count(".") - 1] if "." in __name__ else ROOT  # where `python -m` finds this code
