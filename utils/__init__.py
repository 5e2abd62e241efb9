"""What every other package builds on: configuration, files, log, processes, devices, seeds."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the repository
