"""The flags of the published program of 3DETR, turned into those of `main.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import ROOT
from utils.config.cli import PROG, Parser
from utils.errors import UserError

ENTRIES = ("train", "val", "test")
RECIPES = {"vanilla": "3detr", "masked": "3detr-m"}  # by --enc_type
# Published flag -> (the keys that it sets, its type, its published default, or None where that of the recipe is the same).
KEYS = {
    "base_lr": (("optimizer.kwargs.lr",), float, None),
    "warm_lr_epochs": (("scheduler.kwargs.initial_epochs",), int, None),
    "weight_decay": (("optimizer.kwargs.weight_decay",), float, None),
    "clip_gradient": (("grad_norm_clip",), float, None),
    "max_epoch": (("max_epoch", "scheduler.kwargs.epochs"), int, 720),
    "log_every": (("log_every",), int, 10),
    "dataset_root_dir": (tuple(f"dataset.{entry}.ROOT" for entry in ENTRIES), str, None),
    "meta_data_dir": (tuple(f"dataset.{entry}.META" for entry in ENTRIES), str, None),
    "enc_dropout": (("model.enc_dropout",), float, 0.1),
    "loss_giou_weight": (("model.loss_giou_weight",), float, 0.0),
    "loss_no_object_weight": (("model.loss_no_object_weight",), float, 0.2),
}
# Published flags that are keys of the model under the same name, with the same defaults.
SAME = {
    **dict.fromkeys(("enc_dim", "enc_ffn_dim", "enc_nhead", "dec_nlayers", "dec_dim", "dec_ffn_dim", "dec_nhead"), int),
    **dict.fromkeys(("preenc_npoints", "nqueries"), int),
    **dict.fromkeys(("dec_dropout", "mlp_dropout"), float),
    **dict.fromkeys(("matcher_giou_cost", "matcher_cls_cost", "matcher_center_cost", "matcher_objectness_cost"), float),
    **dict.fromkeys(("loss_sem_cls_weight", "loss_angle_cls_weight", "loss_angle_reg_weight"), float),
    **dict.fromkeys(("loss_center_weight", "loss_size_weight"), float),
}
# Without effect here, or there.
IDLE = ("lr_scheduler", "enc_pos_embed", "enc_activation", "pos_embed", "nsemcls", "dataset_num_workers", "start_epoch", "dist_url",
        "log_metrics_every", "save_separate_checkpoint_every_epoch", "model_name")  # fmt: skip
FIXED = {"warm_lr": 1e-6, "final_lr": 1e-6}  # ends of the schedule


def translate(argv: Sequence[str], prog: str | None = None) -> list[str]:
    """Return the flags of the repository's `main.py` that stand for the published ones; others pass as they are.

    Without `--config` the recipe is that of `--enc_type`, with the published program's own defaults, which are not those of its published
    numbers: `--loss_giou_weight 1 --loss_no_object_weight 0.25 --max_epoch 1080` make them so.
    """
    args, others = build_parser(prog).parse_known_args(argv)
    if any(flag.partition("=")[0] == "--config" for flag in others):
        return list(argv)
    _check(args)
    flags = ["--config", str(ROOT / "cfgs" / "detection" / RECIPES[args.enc_type] / "scannet.yaml")]
    flags += ["--test", "--ckpts", args.test_ckpt] if args.test_only else ["--scratch_model"]
    if args.checkpoint_dir is not None:
        flags += ["--exp_name", Path(args.checkpoint_dir).name]
    flags += ["--val_freq", str(args.eval_every_epoch)] + ([] if args.seed is None else ["--seed", str(args.seed)])
    sets = {"total_bs": args.batchsize_per_gpu * args.ngpus}
    for name, (keys, _, default) in KEYS.items():
        value = getattr(args, name)
        value = default if value is None else value
        sets |= {} if value is None else dict.fromkeys(keys, value)
    sets |= {f"model.{name}": getattr(args, name) for name in SAME if getattr(args, name) is not None}
    if args.enc_nlayers is not None and args.enc_type == "vanilla":  # the masked encoder always has three layers
        sets["model.enc_nlayers"] = args.enc_nlayers
    sets |= {"model.use_color": "true"} if args.use_color else {}
    sets |= {"optimizer.decay_all": "false", "optimizer.token_rule": "false"} if args.filter_biases_wd else {}
    for name in IDLE:
        if getattr(args, name) is not None:
            print(f"--{name} has no effect", file=sys.stderr)
    return [*flags, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")), *others]


def _check(args: argparse.Namespace) -> None:
    """Raise where the published flags ask for what is not here."""
    if args.dataset_name not in (None, "scannet"):
        raise UserError(f"--dataset_name {args.dataset_name}: is not here; use scannet")
    if args.enc_type not in RECIPES:
        raise UserError(f"--enc_type {args.enc_type}: is unknown; choose {' or '.join(RECIPES)}")
    if args.test_only and args.test_ckpt is None:
        raise UserError("--test_only: needs --test_ckpt PATH; add it")
    for name, value in FIXED.items():
        if getattr(args, name) not in (None, value):
            raise UserError(
                f"--{name} {getattr(args, name):g}: the schedule begins and ends at {value:g}; leave it out"
            )


def build_parser(prog: str | None = None) -> Parser:
    """Return the parser of the published flags; `prog` is what the program is called, where that is not `main.py`."""
    parser = Parser(
        prog=prog or PROG,
        description="Object detection, with the published flags of 3DETR. All flags of the main program work as well.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset_name", metavar="NAME", help="scannet")
    parser.add_argument(
        "--enc_type", default="vanilla", metavar="TYPE", help="vanilla (3DETR, default) or masked (3DETR-m)"
    )
    parser.add_argument("--enc_nlayers", type=int, metavar="N", help="layers of a vanilla encoder (default: 3)")
    parser.add_argument("--test_only", action="store_true", help="evaluate --test_ckpt")
    parser.add_argument("--test_ckpt", metavar="PATH", help="checkpoint to evaluate")
    parser.add_argument("--checkpoint_dir", metavar="DIR", help="its last part is the name of the run, as --exp_name")
    parser.add_argument("--batchsize_per_gpu", type=int, default=8, metavar="N", help="scenes of a step (default: 8)")
    parser.add_argument(
        "--ngpus", type=int, default=1, metavar="N", help="multiplies the batch; start N processes with torchrun"
    )
    parser.add_argument("--eval_every_epoch", type=int, default=10, metavar="N", help="as --val_freq (default: 10)")
    parser.add_argument("--seed", type=int, metavar="N", help="(default: 0)")
    parser.add_argument("--use_color", action="store_true", help="take colours as well")
    parser.add_argument("--filter_biases_wd", action="store_true", help="no weight decay of biases and norms")
    for name, (keys, kind, default) in KEYS.items():
        known = "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", type=kind, metavar="V", help=f"as {keys[0]}{known}")
    for name, kind in SAME.items():
        parser.add_argument(f"--{name}", type=kind, metavar="V", help=f"as model.{name}")
    for name in FIXED:
        parser.add_argument(f"--{name}", type=float, metavar="LR", help=argparse.SUPPRESS)
    for name in IDLE:
        parser.add_argument(f"--{name}", metavar="V", help=argparse.SUPPRESS)
    return parser
