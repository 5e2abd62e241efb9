"""The command lines of GeoMask3D's own two programs, turned into those of `main.py`.

Only what differs is here: a published flag becomes a flag or a key of ours, has no effect, or is refused. All flags of
`main.py` work with them.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from tools.published.keys import OLD_NAMES
from tools.published.paths import below_cfgs, find_recipe
from utils.config.cli import Parser, build_parser, parse_args
from utils.config.load import read_recipe
from utils.errors import UserError

# Class names in published files -> ours: the files repeat those of the base methods.
PRETRAINING_NAMES = {"Point_MAE": "GM3D", "Point_M2AE": "GM3D_Point_M2AE"}
CLASSIFIER_NAMES = {"PointTransformer": "GM3D_PointTransformer"}

# Published flag -> key of ours, where the value goes over as it is.
_SHARED_KEYS = {
    "weight_decay": "optimizer.kwargs.weight_decay",
    "min_lr": "scheduler.kwargs.min_lr",
    "warmup_epochs": "scheduler.kwargs.initial_epochs",
    "accum_iter": "step_per_update",
}
_PRETRAINING_KEYS = {
    **_SHARED_KEYS,
    "mask_ratio": "model.transformer_config.mask_ratio",
    "mode": "model.guidance.mode",
    "relative": "model.guidance.relative",
    "loss_multiply_by": "model.guidance.weights",
    "after_epoch": "model.guidance.weights_from",
    "dino_path": "model.guidance.teacher",
    "shared_learnable_tokens": "model.guidance.shared_mask_token",
}
_FINETUNING_KEYS = {**_SHARED_KEYS, "layer_decay": "optimizer.layer_decay", "clip_grad": "grad_norm_clip"}

# What the published programs take from their flags and never from the file. Recipes below cfgs/ say these themselves.
_PRETRAINING_DEFAULTS = {
    "epochs": 400,
    "warmup_epochs": 40,
    "min_lr": 0.0,
    "weight_decay": 0.05,
    "blr": 1e-3,
    "batch_size": 256,
}
_FINETUNING_DEFAULTS = {
    "epochs": 500, "warmup_epochs": 5, "min_lr": 1e-6, "weight_decay": 0.05, "blr": 5e-4, "batch_size": 40, "layer_decay": 0.75,
}  # fmt: skip

_LEFTOVERS = "left over from the programs for images that the published one was made of"
_IDLE = {
    "model": "the configuration names the model",
    "data_path": "the configuration names the data; --data_root moves it",
    "nb_classes": "the configuration says it (model.cls_dim)",
    "start_epoch": "--resume knows where to go on",
    "pin_mem": "clouds are read through a memory map",
    "no_pin_mem": "clouds are read through a memory map",
    "world_size": "torchrun and --launcher pytorch say it",
    "distributed": "torchrun and --launcher pytorch say it",
    "dist_on_itp": "torchrun and --launcher pytorch say it",
    "dist_url": "torchrun and --launcher pytorch say it",
    "dist_eval": "one process evaluates",
    "drop_path": "never read by the published program either: model.drop_path_rate",
    **dict.fromkeys(
        ("input_size", "token_size", "norm_pix_loss", "mask_regular", "mask_block", "vis_mask_ratio", "learning_loss", "global_pool",
         "cls_token", "color_jitter", "aa", "smoothing", "reprob", "remode", "recount", "resplit", "mixup", "cutmix", "cutmix_minmax",
         "mixup_prob", "mixup_switch_prob", "mixup_mode"),
        _LEFTOVERS,
    ),
}  # fmt: skip


def parse_pretrain(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of `main_pretrain.py`: those of `main.py`, and the published ones of the program of that name.

    Raises:
        UserError: a flag that is refused, or what `parse_args` objects to.
    """
    own = _parser(
        "main_pretrain.py", "Pre-train GeoMask3D, by the published flags or by those of main.py.", _PRETRAINING_KEYS
    )
    group = own.add_argument_group("pre-training")
    group.add_argument("--bf16", action="store_true", default=argparse.SUPPRESS, help="--precision bf16")
    group.add_argument(
        "--finetune", "--load_from", dest="start", metavar="PTH", default=argparse.SUPPRESS, help="--start_ckpts"
    )
    group.add_argument(
        "--after_200_epoch",
        type=_boolean,
        default=argparse.SUPPRESS,
        help="guide half of the mask after half of the run",
    )
    for name, default in (("shared_opt", True), ("classification", False)):
        group.add_argument(f"--{name}", type=_boolean, default=default, help=f"only {default} is offered")
    for name, values in (("learn_feature_loss", ("dino", "none")), ("byol", ("none",)), ("clip_path", ("none",))):
        group.add_argument(f"--{name}", default=values[0], help=f"only {' and '.join(values)} are offered")
    given, rest = own.parse_known_args(argv)
    _refuse(given)
    values = {**vars(given)}
    recipe, foreign, name = _recipe(given, rest, "gm3d", PRETRAINING_NAMES)
    if foreign:
        values = {**_PRETRAINING_DEFAULTS, **values}
    sets = _settings(values, _PRETRAINING_KEYS, _PRETRAINING_DEFAULTS)
    if name == "GM3D_Point_M2AE" and "mask_ratio" in values:
        sets = [text.replace("model.transformer_config.mask_ratio", "model.mask_ratio") for text in sets]
    if values.get("after_200_epoch"):
        sets += ["model.guidance.half=true", "model.guidance.fraction=0.5"]
    if foreign:
        sets += ["optimizer.kwargs.betas=[0.9, 0.95]", "grad_norm_clip=5"]
    flags = ["--precision", "bf16"] if "bf16" in values else []
    flags += ["--start_ckpts", values["start"]] if "start" in values else []
    return _finish(given, [*recipe, *rest, *flags], sets)


def parse_finetune(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of `main_finetune.py`: those of `main.py`, and the published ones of the program of that name.

    Raises:
        UserError: what `parse_args` objects to.
    """
    own = _parser(
        "main_finetune.py", "Fine-tune a classifier, by the published flags or by those of main.py.", _FINETUNING_KEYS
    )
    group = own.add_argument_group("fine-tuning")
    group.add_argument("--finetune", metavar="PTH", default=argparse.SUPPRESS, help="weights to begin with (--ckpts)")
    group.add_argument(
        "--teacher", action="store_true", default=False, help="take the averaged weights of the checkpoint"
    )
    group.add_argument(
        "--eval", action="store_true", default=False, help="evaluate the classifier in --finetune (--test)"
    )
    given, rest = own.parse_known_args(argv)
    weights = getattr(given, "finetune", None)
    recipe, foreign, _ = _recipe(given, rest, None if weights else "gm3d", CLASSIFIER_NAMES)
    values = {**(_FINETUNING_DEFAULTS if foreign else {}), **vars(given)}
    flags = ["--test" if given.eval else "--finetune_model", *(["--ckpts", weights] if weights else [])]
    args = _finish(given, [*recipe, *rest, *flags], _settings(values, _FINETUNING_KEYS, _FINETUNING_DEFAULTS))
    args.averaged = given.teacher
    return args


def _parser(name: str, text: str, keys: dict[str, str]) -> Parser:
    """Return a parser of the published flags; what is not given is not in its result."""
    parser = Parser(
        prog=name, description=text, epilog=f"All flags of main.py work too:\n\n{build_parser().format_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    group = parser.add_argument_group("published")
    group.add_argument(
        "--config", "--name_config", dest="config", metavar="YAML", help="recipe, any YAML file, or a published path"
    )
    group.add_argument("--output_dir", metavar="DIR", help="folder of the run (default: experiments/...)")
    group.add_argument(
        "--log_dir", metavar="DIR", help="folder of the TensorBoard files (default: TFBoard/ in that of the run)"
    )
    group.add_argument("--experiment", metavar="NAME", help="name of the run, a folder in --output_dir")
    group.add_argument("--resume", nargs="?", const="", metavar="PTH", help="go on with the run in its folder")
    group.add_argument("--epochs", type=int, help="keys max_epoch and scheduler.kwargs.epochs")
    group.add_argument(
        "--lr", type=float, help="key optimizer.kwargs.lr; else --blr * --batch_size * --accum_iter / 256"
    )
    group.add_argument("--blr", type=float, help="rate of a batch of 256")
    group.add_argument(
        "--batch_size", type=int, help="scales the rate and nothing else, as published; the batch is the key total_bs"
    )
    for flag, key in keys.items():
        kind = _boolean if flag in ("relative", "shared_learnable_tokens") else None
        count = 2 if flag == "loss_multiply_by" else None
        group.add_argument(f"--{flag}", type=kind, nargs=count, help=f"key {key}")
    idle = parser.add_argument_group("accepted without effect")
    for flag in _IDLE:
        if flag not in keys:
            idle.add_argument(f"--{flag}", nargs="?", const="", help=argparse.SUPPRESS)
    return parser


def _boolean(text: str) -> bool:
    """Read True and False, whichever way they are written; the published programs take any text for True."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() in ("true", "1")


def _refuse(given: argparse.Namespace) -> None:
    if not given.shared_opt:
        raise UserError(
            "--shared_opt False: two optimizers are not offered, their published path does not run; leave it out"
        )
    if given.classification:
        raise UserError("--classification True: training on labels at the same time is not offered; leave it out")
    for name, allowed in (("learn_feature_loss", ("dino", "none")), ("byol", ("none",)), ("clip_path", ("none",))):
        if getattr(given, name) not in allowed:
            raise UserError(
                f"--{name} {getattr(given, name)}: is not offered; leave it out, or choose {' or '.join(allowed)}"
            )
    if given.learn_feature_loss == "none" and getattr(given, "mode", "feature") == "feature":
        raise UserError("--learn_feature_loss none: feature mode needs the teacher; add --mode usual")


def _recipe(
    given: argparse.Namespace, rest: list[str], method: str | None, names: dict[str, str]
) -> tuple[list[str], bool, str]:
    """Return flags that name configuration and model, whether the file is a foreign one, and the model's NAME."""
    path = getattr(given, "config", None)
    if path is None:
        raise UserError("--config is missing; give a recipe, for example --config cfgs/pre-training/gm3d.yaml")
    file = find_recipe(path, method or "gm3d").path
    tree = read_recipe(file, OLD_NAMES)
    # A resolved configuration of ours has every key, this one too; published files never do.
    foreign = below_cfgs(file) is None and "keep_every" not in tree
    flags = ["--config", str(path)]
    if method and "--method" not in rest:
        flags += ["--method", method]
    name = (tree.get("model") or {}).get("NAME")
    if foreign and name in names:
        name = names[name]
        flags += ["--set", f"model.NAME={name}"]
    batch = ((tree.get("dataset") or {}).get("train") or {}).get("bs")
    if foreign and batch:
        flags += ["--set", f"total_bs={batch}"]
    if foreign:
        kind = [
            "optimizer.type=AdamW",
            "optimizer.token_rule=false",
            "scheduler.type=HalfCosine",
            "scheduler.lag=0",
            "scheduler.per_step=true",
        ]
        flags += [part for text in kind for part in ("--set", text)]
    return flags, foreign, name


def _settings(values: dict[str, Any], keys: dict[str, str], published: dict[str, Any]) -> list[str]:
    """Return `key=value` of every published flag in `values` that is a key of ours; `published` has the defaults of the program."""
    sets = [f"{key}={_text(values[flag])}" for flag, key in keys.items() if flag in values]
    if "epochs" in values:
        sets += [
            f"max_epoch={values['epochs']}",
            "max_epoch_inclusive=false",
            f"scheduler.kwargs.epochs={values['epochs']}",
        ]
    if "lr" in values:
        sets.append(f"optimizer.kwargs.lr={values['lr']}")
    elif "blr" in values or "batch_size" in values:
        blr, batch = (values.get(name, published[name]) for name in ("blr", "batch_size"))
        sets.append(f"optimizer.kwargs.lr={blr * batch * int(values.get('accum_iter', 1)) / 256}")
    return sets


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _finish(given: argparse.Namespace, flags: list[str], sets: list[str]) -> argparse.Namespace:
    """Parse the flags of `main.py` that came out; what the person set with --set stands over what flags say."""
    values = vars(given)
    if "resume" in values:
        flags = [*flags, "--resume"]
    if "experiment" in values:
        flags = [*flags, "--exp_name", values["experiment"]]
    front = [part for text in sets for part in ("--set", text)]
    args = parse_args([*front, *flags])
    args.notes += [f"--{name} has no effect: {why}" for name, why in _IDLE.items() if name in values]
    if "output_dir" in values:
        args.output_dir = values["output_dir"] + (f"/{values['experiment']}" if "experiment" in values else "")
    args.log_dir = values.get("log_dir")
    return args
