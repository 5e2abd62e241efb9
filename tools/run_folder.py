"""The folder of a run: which one it is, and whether a command may use it. Imports no torch, so that it answers at once."""

import argparse
from pathlib import Path

from tools.published.paths import below_cfgs
from utils.errors import UserError


def experiment_folder(args: argparse.Namespace, recipe_path: str | Path) -> Path:
    """Return the folder of a run, `experiments/<path below cfgs/ without .yaml>/<exp_name>/`.

    It is relative to the working directory; `--output_dir` of GM3D's programs replaces it. A recipe that stands elsewhere gives its
    parent folder and its stem. `--mode` is appended to the name.
    """
    if getattr(args, "output_dir", None):
        return Path(args.output_dir)
    path = Path(recipe_path)
    below = below_cfgs(path)
    if below is None:
        parent = path.resolve().parent.name
        below = Path(parent, path.name) if parent else Path(path.name)
    name = args.exp_name + (f"_{args.mode}" if args.mode else "")
    return Path("experiments") / below.with_suffix("") / name


def is_training(args: argparse.Namespace) -> bool:
    return not (args.test or args.test_svm or args.predict)


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
