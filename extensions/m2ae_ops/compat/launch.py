"""Run a script of another repository on the ops of this package, as the interpreter itself would run it."""

import argparse
import runpy
import sys
from pathlib import Path

from .cpu_device import map_cuda_to_cpu
from .hook import install

ROOT = Path(__file__).resolve().parents[3]  # the repository, when this package lies in one


def main(arguments: list[str] | None = None) -> int:
    """Parse `run [--device cpu] script.py ...` and run the script with the arguments that follow it."""
    parser = argparse.ArgumentParser(prog="python -m m2ae_ops.compat", description=__doc__)
    run = parser.add_subparsers(required=True).add_parser("run", help="run a script")
    run.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda",
        help="cpu: `.cuda()`, torch.cuda and device='cuda' mean the CPU",
    )
    run.add_argument("script", help="path of the script; options for this command stand before it")
    run.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of the script")
    parsed = parser.parse_args(arguments)
    if not Path(parsed.script).is_file():
        run.error(f"there is no script {parsed.script} in {Path.cwd()}")
    run_script(parsed.script, parsed.rest, device=parsed.device)
    return 0


def run_script(script: str, arguments: list[str], *, device: str = "cuda") -> None:
    """Run a script as `__main__` with the published names installed; `device="cpu"` maps CUDA to the CPU."""
    if device == "cpu":
        map_cuda_to_cpu()
    install()
    _step_aside()
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


def _step_aside() -> None:
    """Leave the names of this repository (extensions, models, utils ...) to the other one.

    Started as `extensions.m2ae_ops.compat`, this module stands inside a package of the very name that the other repository
    uses for its own. The modules loaded so far, and those they import later, keep working without it.
    """
    if not __package__.startswith("extensions."):
        return
    sys.modules.pop("extensions", None)
    sys.path[1:] = [entry for entry in sys.path[1:] if Path(entry or ".").resolve() != ROOT]
