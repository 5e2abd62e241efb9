"""The command `m2ae` of an installation: `m2ae COMMAND ...` runs the program of that name with the flags that follow."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from utils import __version__
from utils.errors import say, suggest


class Command(NamedTuple):
    """A program and what it does.

    Args:
        module: its module in the repository; its function `main` takes the flags.
        flags: what stands in front of them, unless one of `instead` is among them.
    """

    module: str
    help: str
    flags: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()


COMMANDS = {
    "pretrain": Command("main", "pre-train a masked autoencoder: --config cfgs/pre-training/METHOD.yaml"),
    "finetune": Command(
        "main",
        "fine-tune a classifier from --ckpts: --config cfgs/fine-tuning/METHOD/SET.yaml",
        ("--finetune_model",),
        ("--scratch_model", "--test"),
    ),
    "svm": Command(
        "main", "linear SVM on features of --ckpts: m2ae svm modelnet40 --config ...", ("--test_svm",), ("--test_svm",)
    ),
    "few-shot": Command(
        "main",
        "fine-tune on few clouds a class: --config cfgs/few-shot/METHOD/SET.yaml --way 5 --shot 10 --fold all",
        ("--finetune_model",),
        ("--scratch_model", "--test"),
    ),
    "segment": Command("segmentation.main", "train or test part segmentation, or name the parts of own clouds"),
    "run": Command("main", "whatever the flags of the main program ask for"),
    "vis": Command("main_vis", "show what a pre-trained model rebuilds"),
    "embed": Command("tools.embed", "features, and predictions of a classifier, of any clouds or meshes"),
    "data": Command("datasets.prepare", "check, fetch, convert, draw data sets"),
    "weights": Command("tools.weights", "keep the weights of a checkpoint alone"),
    "export": Command("tools.export", "write a checkpoint in the published layout"),
    "doctor": Command("tools.doctor", "check this installation on this machine"),
}
_PREFIX = (__package__ or "tools").removesuffix("tools")  # of modules: "" in the repository, "m2ae." in an installation


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, 2 where there is no such command."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"m2ae {__version__}")
        return 0
    if name not in COMMANDS:
        say(f"error: m2ae {name}: is no command; {suggest(name, COMMANDS)} m2ae --help lists them")
        return 2
    command = COMMANDS[name]
    given = {flag.partition("=")[0] for flag in flags}
    added = () if given & {*command.instead, "--help", "-h"} else command.flags
    return import_module(_PREFIX + command.module).main([*added, *flags])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: m2ae COMMAND ...",
            "",
            "Masked autoencoders of point clouds. Recipes (cfgs/...) are part of the installation.",
            "",
            *lines,
            "",
            "m2ae COMMAND --help explains one, m2ae --version says which version this is.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
