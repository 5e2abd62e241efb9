"""Run by the interpreter as it starts, in every process below `python -m m2ae_ops.compat run`: installs what that run has.

The folder of this file stands first on PYTHONPATH there. The modules are loaded from their files, under their names, without
the package m2ae_ops, which would import PyTorch.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

COMPAT = Path(__file__).resolve().parents[1]


def load(name: str, path: Path):
    """Load a file as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_shadowed() -> None:
    """Run the environment's own sitecustomize, which this one stands in front of."""
    rest = [entry for entry in sys.path if Path(entry or ".").resolve() != COMPAT / "start"]
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if "m2ae_ops" not in sys.modules:
    for part in ("advice", "shims", "hook"):
        hook = load(f"m2ae_ops.compat.{part}", COMPAT / f"{part}.py")
    hook.install_as_asked()
run_shadowed()
