"""Run published code on the ops of this package: a script, a module (-m), a shell script or any command, as typed after `python`.

What it starts in turn (workers, launched processes, `python` in shell scripts) runs on them too.
"""

import argparse
import atexit
import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .advice import PAGE, advise_on_errors, served
from .hook import PACKAGE, VARIABLE, install
from .shims import SHIMS

ROOT = PACKAGE.parents[1]  # the repository, when this package lies in one
START = Path(__file__).resolve().parent / "start"
COMMANDS = {"python": "", "python3": "", "torchrun": " -m torch.distributed.run"}
"""Commands that stand for this interpreter below `run`, with what follows its name."""


def main(arguments: list[str] | None = None) -> int:
    """Parse `run [--device cpu] [--shims] WHAT ...` and run it with the arguments that follow; returns the exit status."""
    parser, run = _parsers()
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parser.parse_args(arguments)
    what = parsed.module or [parsed.script, *parsed.rest]
    if not what or what[0] is None:
        run.error(f"what is to be run? Give a script, or -m and a module; see {PAGE}")
    if not (parsed.module or Path(what[0]).is_file() or shutil.which(what[0]) or what[0] in COMMANDS):
        there = f"there is no script {what[0]} in {Path.cwd()}, nor a command of that name"
        run.error(f"{there}. Served are {served()}; see {PAGE}")
    if __package__ != "m2ae_ops.compat":
        return _run_under_own_name(arguments)
    os.environ.update(_environment(cpu=parsed.device == "cpu", shims=parsed.shims))
    if parsed.shims:
        print("m2ae_ops.compat: shims for " + ", ".join(SHIMS), file=sys.stderr)
    if parsed.module:
        return run_module(what)
    if not Path(what[0]).is_file():
        return subprocess.run(what).returncode
    return subprocess.run(["bash", *what]).returncode if what[0].endswith((".sh", ".bash")) else run_script(what)


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of the command line and that of its sub-command `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m m2ae_ops.compat", description=__doc__, epilog=f"Served are {served()}. See {PAGE}."
    )
    run = parser.add_subparsers(required=True).add_parser("run", help="run a script, a module or a command")
    run.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda",
        help="cpu: `.cuda()`, torch.cuda and device='cuda' mean the CPU",
    )
    run.add_argument(
        "--shims",
        action="store_true",
        help="give back what only age took away: " + "; ".join(f"{name} ({what})" for name, what in SHIMS.items()),
    )
    run.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module, as python -m does"
    )
    run.add_argument(
        "script",
        nargs="?",
        help="a script, a shell script (*.sh) or a command; options for this command stand before it",
    )
    run.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    return parser, run


def run_script(command: list[str]) -> int:
    """Run a Python script with its arguments as `__main__`, as the environment has it."""
    _install()
    sys.argv = command
    sys.path[0] = str(Path(command[0]).resolve().parent)
    runpy.run_path(command[0], run_name="__main__")
    return 0


def run_module(command: list[str]) -> int:
    """Run a module with its arguments as `__main__`, as the environment has it."""
    _install()
    sys.argv = command
    sys.path[0] = str(Path.cwd())
    if importlib.util.find_spec(command[0].partition(".")[0]) is None:
        print(
            f"m2ae_ops.compat: there is no module {command[0]} in {Path.cwd()}, nor is one installed; see {PAGE}",
            file=sys.stderr,
        )
        return 2
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    return 0


def _install() -> None:
    words = os.environ[VARIABLE].split()
    advise_on_errors()
    install(cpu="cpu" in words, shims="shims" in words)


def _environment(*, cpu: bool, shims: bool) -> dict[str, str]:
    """Return what processes below this one need: what to install, where to start, and which interpreter `python` is."""
    words = ["on", *["cpu"] * cpu, *["shims"] * shims]
    path = os.environ.get("PYTHONPATH", "")
    entries = [str(START), *[entry for entry in path.split(os.pathsep) if entry and Path(entry) != START]]
    return {
        VARIABLE: " ".join(words),
        "PYTHONPATH": os.pathsep.join(entries),
        "PATH": os.pathsep.join([_commands(), os.environ.get("PATH", os.defpath)]),
    }


def _commands() -> str:
    """Make a folder with COMMANDS that start this interpreter as below `run`; removed at exit.

    They serve shell scripts, also those that set PYTHONPATH themselves.
    """
    folder = tempfile.mkdtemp(prefix="m2ae-compat-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    interpreter = shlex.quote(sys.executable)
    start = f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(START))}${{PYTHONPATH:+:$PYTHONPATH}}\nexport PYTHONPATH\nexec {interpreter}"
    for name, module in COMMANDS.items():
        command = Path(folder, name)
        command.write_text(f'{start}{module} "$@"\n')
        command.chmod(0o755)
    return folder


def _run_under_own_name(arguments: list[str]) -> int:
    """Start again as `m2ae_ops.compat`, without this repository on the path.

    As `extensions.m2ae_ops.compat` this module stands inside a package of the very name that the other repository uses for its
    own, as it does for models and utils.
    """
    environment = {**os.environ, **_environment(cpu=False, shims=False)}
    entries = environment["PYTHONPATH"].split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if Path(entry).resolve() != ROOT)
    return subprocess.run([sys.executable, "-m", "m2ae_ops.compat", *arguments], env=environment).returncode
