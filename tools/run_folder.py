"""The folder of a run: which one it is, and whether a command may use it. Imports no torch, so that it answers at once."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import IO

from tools.published.paths import below_cfgs, find_recipe
from utils.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: folders are not locked
    fcntl = None


def experiment_folder(args: argparse.Namespace, recipe_path: str | Path) -> Path:
    """Return the folder of a run, `experiments/<path below cfgs/ without .yaml>/<exp_name>/`.

    It is relative to the working directory; `--output_dir` of GM3D's programs replaces it. A recipe that stands elsewhere gives its
    parent folder and its stem. `--mode` is appended to the name. What evaluates a checkpoint of a run, and has no name of its own, uses
    the folder of that run.
    """
    if getattr(args, "output_dir", None):
        return Path(args.output_dir)
    if not args.named and not is_training(args) and (run := _run_of(args.ckpts)):
        return run
    path = Path(recipe_path)
    below = below_cfgs(path)
    if below is None:
        parent = path.resolve().parent.name
        below = Path(parent, path.name) if parent else Path(path.name)
    name = args.exp_name + (f"_{args.mode}" if args.mode else "")
    return Path("experiments") / below.with_suffix("") / name


def is_training(args: argparse.Namespace) -> bool:
    """Say whether a command trains; else it evaluates what `--ckpts` holds."""
    return not (args.test or args.test_svm or args.predict)


def _run_of(ckpts: str) -> Path | None:
    """Return the folder of the run that a checkpoint is in, if there is one that can be written."""
    folder = Path(ckpts).parent
    return folder if (folder / "config.yaml").is_file() and os.access(folder, os.W_OK) else None


def check_early(args: argparse.Namespace) -> None:
    """Check the folder of a run where that takes no checkpoint to know: before anything slow is imported.

    Raises:
        UserError: as `check_folder`, or there is no such recipe.
    """
    if args.method or args.imports or args.ckpts or args.start_ckpts or args.seeds or args.fold == "all":
        return
    check_folder(args, experiment_folder(args, find_recipe(args.config).path))


def check_folder(args: argparse.Namespace, folder: Path) -> None:
    """Raise where a command that trains would mix with the run that a folder holds, or has none to resume."""
    last = folder / "ckpt-last.pth"
    if is_training(args) and last.exists() and not (args.resume or args.overwrite):
        raise UserError(
            f"{folder}: holds a run already; go on with --resume, replace it with --overwrite, or choose another --exp_name"
        )
    # A run that was killed before its first checkpoint has a configuration only, and starts over.
    if args.resume and not last.exists() and not (folder / "config.yaml").exists():
        raise UserError(
            f"--resume: there is no {last}; start the run without --resume, or check --config and --exp_name"
        )


def lock_folder(folder: Path) -> contextlib.AbstractContextManager:
    """Keep other processes from training into a folder until what is returned is closed, or this process ends, however it does.

    Raises:
        UserError: another process trains into it.
    """
    if fcntl is None:
        return contextlib.nullcontext()
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _owner(file)
        file.close()
        raise UserError(
            f"{folder}: {owner} is training into it; wait for it, stop it, or choose another --exp_name"
        ) from error
    except OSError:  # a file system without locks
        file.close()
        return contextlib.nullcontext()
    file.truncate(0)
    file.write(f"{os.getpid()}")
    file.flush()
    return file


def _owner(file: IO[str]) -> str:
    file.seek(0)
    number = file.read(20)
    return f"process {number}" if number.isdigit() else "another process"
