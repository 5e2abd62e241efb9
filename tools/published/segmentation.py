"""The flags of the published program of part segmentation, turned into those of `main.py`."""

import argparse
import sys
from collections.abc import Sequence

from utils import ROOT
from utils.config.cli import PROG, Parser
from utils.errors import UserError

MODULES = {"Point_M2AE_SEG": "point-m2ae", "pt": "point-mae"}  # published values of --model
# Published flag -> the keys that it sets.
KEYS = {
    "batch_size": ("total_bs",),
    "epoch": ("max_epoch", "scheduler.kwargs.epochs"),
    "warmup_epoch": ("scheduler.kwargs.initial_epochs",),
    "learning_rate": ("optimizer.kwargs.lr",),
    "npoint": tuple(f"dataset.{entry}.npoints" for entry in ("train", "val", "test")),
    "root": tuple(f"dataset.{entry}.ROOT" for entry in ("train", "val", "test")),
}


def translate(argv: Sequence[str], prog: str | None = None) -> list[str]:
    """Return the flags of the repository's `main.py` that stand for the published ones; others pass as they are."""
    args, others = build_parser(prog).parse_known_args(argv)
    flags = []
    if not any(flag == "--config" or flag.startswith("--config=") for flag in others):
        flags += ["--config", str(ROOT / "cfgs" / "segmentation" / "shapenet_part.yaml")]
    if args.model is not None:
        if args.model not in MODULES:
            raise UserError(f"--model {args.model}: is unknown; choose one of {', '.join(MODULES)}, or give --method")
        flags += ["--method", MODULES[args.model]]
    if args.log_dir is not None:
        flags += ["--exp_name", args.log_dir]
    if not {"--test", "--predict"} & {flag.partition("=")[0] for flag in others}:
        flags.append("--finetune_model")
    flags += _device(args, others)
    for name, keys in KEYS.items():
        value = getattr(args, name)
        if value is not None:
            flags += [part for key in keys for part in ("--set", f"{key}={value}")]
    if args.normal:
        print("--normal has no effect: the published models take coordinates only", file=sys.stderr)
    return [*flags, *others]


def _device(args: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """Return the device that `--gpu` means; without CUDA it has no effect."""
    if args.gpu is None or "--device" in others:
        return []
    import torch

    if not torch.cuda.is_available():
        print(f"--gpu {args.gpu} has no effect: no CUDA device is visible", file=sys.stderr)
        return []
    return ["--device", f"cuda:{args.gpu}"]


def build_parser(prog: str | None = None) -> Parser:
    """Return the parser of the published flags; `prog` is what the program is called, where that is not `main.py`."""
    parser = Parser(
        prog=prog or PROG,
        description="Part segmentation, with the published flags. All flags of the main program work as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", metavar="NAME", help=f"{' or '.join(MODULES)} (default: what the checkpoint says)")
    parser.add_argument("--batch_size", type=int, metavar="N", help="clouds of a step (default: 16)")
    parser.add_argument("--epoch", type=int, metavar="N", help="epochs (default: 300)")
    parser.add_argument("--warmup_epoch", type=int, metavar="N", help="epochs of warm-up (default: 10)")
    parser.add_argument("--learning_rate", type=float, metavar="LR", help="highest learning rate (default: 2e-4)")
    parser.add_argument("--gpu", metavar="N", help="CUDA device (default: the first)")
    parser.add_argument("--log_dir", metavar="NAME", help="name of the run, as --exp_name")
    parser.add_argument("--npoint", type=int, metavar="N", help="points of a cloud (default: 2048)")
    parser.add_argument("--normal", action="store_true", help="without effect: the models take coordinates only")
    parser.add_argument(
        "--model-prefix", "--model_prefix", choices=("MAE_encoder",), help="without effect: the method knows its keys"
    )
    parser.add_argument("--root", metavar="DIR", help="folder of ShapeNetPart, or of a set in its layout")
    return parser
