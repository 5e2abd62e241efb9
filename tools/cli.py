"""The command `m2ae` of an installation: `m2ae COMMAND ...` runs the program of that name with the flags that follow."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from utils import __version__
from utils.errors import UserError, run_command, suggest

MAIN_FLAGS = "utils.config.cli:build_parser"


class Command(NamedTuple):
    """A program and what it does.

    Args:
        module: its module in the repository; its function `main` takes the flags.
        flags: what stands in front of them, unless one of `instead` is among them.
        parsers: modules and functions that build the parsers of its flags, for completion.
    """

    module: str
    help: str
    flags: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    parsers: tuple[str, ...] = (MAIN_FLAGS,)


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
    "segment": Command(
        "segmentation.main",
        "train or test part segmentation, or name the parts of own clouds",
        parsers=("tools.published.segmentation:build_parser", MAIN_FLAGS),
    ),
    "detect": Command(
        "detection.main",
        "train or test object detection in scenes, or detect in own scenes",
        parsers=("tools.published.detection:build_parser", MAIN_FLAGS),
    ),
    "run": Command("main", "whatever the flags of the main program ask for"),
    "vis": Command("main_vis", "show what a pre-trained model rebuilds", parsers=("main_vis:build_vis_parser",)),
    "embed": Command(
        "tools.embed",
        "features, and predictions of a classifier, of any clouds or meshes",
        parsers=("tools.embed:build_parser",),
    ),
    "look": Command(
        "tools.look",
        "what a model has learned: features as colours, attention, similar patches, masks and errors",
        parsers=("tools.look.command:build_parser",),
    ),
    "data": Command(
        "datasets.prepare", "check, fetch, convert, draw data sets", parsers=("datasets.prepare:build_parser",)
    ),
    "summary": Command(
        "tools.summary", "one table of all runs below a folder", parsers=("tools.summary:build_parser",)
    ),
    "compare": Command(
        "tools.compare",
        "several runs on one page: curves, differences, statistics, galleries",
        parsers=("tools.compare:build_parser",),
    ),
    "sweep": Command(
        "tools.sweep",
        "train the recipes of a folder with several seeds, as one table",
        parsers=("tools.sweep_command:build_parser",),
    ),
    "reproduce": Command(
        "tools.reproduce",
        "published numbers: what they take, run them, ours next to them",
        parsers=("tools.reproduce:build_parser",),
    ),
    "cost": Command(
        "tools.cost", "parameters, FLOPs, memory and speed of a recipe", parsers=("tools.cost:build_parser",)
    ),
    "track": Command(
        "tools.tracking", "send a run to wandb, trackio or mlflow", parsers=("tools.tracking:build_parser",)
    ),
    "weights": Command(
        "tools.weights",
        "list, fetch and check published weights; clean a file",
        parsers=("tools.weights.command:build_parser",),
    ),
    "export": Command(
        "tools.export", "weights and graphs for other programs: safetensors, ONNX", parsers=("tools.export:build_parser",)
    ),
    "doctor": Command(
        "tools.doctor", "check this installation on this machine", parsers=("tools.doctor:build_parser",)
    ),
}
SHARED = ("main", "segmentation.main")  # programs that several commands run: they are told which one they are
SHELLS = ("bash", "zsh", "fish", "tcsh")
COMPLETION, COMPLETION_HELP = "completion", f"print a script that completes commands and flags in {', '.join(SHELLS)}"
# What stands for the values of flags in help texts -> a flag whose values are files or folders.
FILES = ("PTH", "PATH", "YAML", "FILE", "FILE.py", "NPZ", "IN", "OUT", "DIR")
_PREFIX = (__package__ or "tools").removesuffix("tools")  # of modules: "" in the repository, "m2ae." in an installation


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, 2 where there is no such command."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        try:
            return _run(*(argv or ["--help"]))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # whoever read it may have gone, as `| head` does, also after --help, which exits

    return run_command(run, debug="--debug" in argv)


def _run(name: str, *flags: str) -> int:
    if name in ("--help", "-h"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"m2ae {__version__}")
        return 0
    if name == COMPLETION:
        print(completion(*flags))
        return 0
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS, otherwise="m2ae --help lists them")
        raise UserError(f"m2ae {name}: is no command; {hint}")
    command = COMMANDS[name]
    given = {flag.partition("=")[0] for flag in flags}
    added = () if given & {*command.instead, "--help", "-h"} else command.flags
    options = {"prog": f"m2ae {name}"} if command.module in SHARED else {}
    return int(_imported(command.module).main([*added, *flags], **options))


def completion(shell: str = "", *others: str) -> str:
    """Return a script that completes commands and flags in a shell.

    Raises:
        UserError: no such shell, or shtab, which writes the script, is not installed.
    """
    if shell not in SHELLS or others:
        raise UserError(f"m2ae {COMPLETION} {' '.join((shell, *others))}: give one shell of {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError as error:
        raise UserError(f"m2ae {COMPLETION}: needs shtab, which is not installed; pip install shtab") from error
    return str(shtab.complete(_whole_parser(shtab.FILE), shell))


def _whole_parser(files: object) -> argparse.ArgumentParser:
    """Return a parser of all commands with their flags; `files` marks, for shtab, those whose values are files or folders."""
    whole = argparse.ArgumentParser(prog="m2ae")
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parents = [
            getattr(_imported(module), function)() for module, function in (path.split(":") for path in command.parsers)
        ]
        for group in (group for parent in parents for group in parent._action_groups):
            group.conflict_handler = "resolve"  # of a flag that two of them have, the last one counts
        added = commands.add_parser(
            name, help=command.help, parents=parents, add_help=False, conflict_handler="resolve"
        )
        for action in added._actions:
            if action.metavar in FILES and not action.choices:
                action.complete = files  # type: ignore[attr-defined]  # which shtab reads
    commands.add_parser(COMPLETION, help=COMPLETION_HELP).add_argument("shell", choices=SHELLS)
    return whole


def _imported(module: str) -> ModuleType:
    return import_module(_PREFIX + module)


def _overview() -> str:
    width = max(map(len, (*COMMANDS, COMPLETION)))
    helps = {name: command.help for name, command in COMMANDS.items()} | {COMPLETION: COMPLETION_HELP}
    lines = [f"  {name:<{width}}  {text}" for name, text in helps.items()]
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
