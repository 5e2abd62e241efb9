"""A run without flags and files, for what a runner hands on: guides, probes."""

import logging
from argparse import Namespace
from pathlib import Path

import torch

from tools.context import RunContext


def quiet_run(config, folder: Path, **flags) -> RunContext:
    """Return the context of a run on the CPU that logs to nowhere."""
    args = Namespace(**{"resume": False, "exp_name": "test", **flags})
    return RunContext(config, args, Path(folder), torch.device("cpu"), logging.getLogger("m2ae.tests"))
