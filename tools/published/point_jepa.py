"""The command lines of Point-JEPA's own programs, which are LightningCLI's, turned into those of `main.py`.

Keys are given as `--model.x`, `--data.x` and `--trainer.x`, or stand in YAML files of that layout; published paths stand for
recipes here. All flags of `main.py` work with them.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.published.paths import OWN_PATHS, find_recipe, lookup
from utils.config.cli import Parser, build_parser, parse_args
from utils.config.yaml import parse_value, read_yaml
from utils.errors import UserError, suggest

# Published key -> keys of ours that have its value. Keys of the model that are not here have the same name.
KEYS = {
    "model.tokenizer_num_groups": ("model.num_group",),
    "model.tokenizer_group_size": ("model.group_size",),
    "model.tokenizer_group_radius": ("model.group_radius",),
    "model.encoder_dim": ("model.trans_dim", "model.encoder_dims"),
    "model.encoder_depth": ("model.depth",),
    "model.encoder_heads": ("model.num_heads",),
    "model.encoder_dropout": ("model.dropout",),
    "model.encoder_attention_dropout": ("model.attention_dropout",),
    "model.encoder_drop_path_rate": ("model.drop_path_rate",),
    "model.learning_rate": ("optimizer.kwargs.lr",),
    "model.encoder_learning_rate": ("optimizer.encoder_lr",),
    "model.optimizer_adamw_weight_decay": ("optimizer.kwargs.weight_decay",),
    "model.lr_scheduler_linear_warmup_epochs": ("scheduler.kwargs.initial_epochs",),
    "model.lr_scheduler_linear_warmup_start_lr": ("scheduler.kwargs.start_lr",),
    "model.lr_scheduler_cosine_eta_min": ("scheduler.kwargs.min_lr",),
    "model.svm_validation_C": ("svm.C",),
    "data.batch_size": ("total_bs",),
    "trainer.max_epochs": ("max_epoch", "scheduler.kwargs.epochs"),
    "trainer.gradient_clip_val": ("grad_norm_clip",),
}
# Published key -> flag of `main.py`.
FLAGS = {
    "seed_everything": "--seed",
    "data.way": "--way",
    "data.shot": "--shot",
    "data.fold": "--fold",
    "trainer.check_val_every_n_epoch": "--val_freq",
    "finetuned_ckpt_path": "--ckpts",
    "vote_iterations": "--vote_rounds",
}
# Values that are the only ones here.
FIXED = {"model.predictor_mlp_ratio": 4.0, "model.encoder_add_pos_at_every_layer": True, "vote_num": 10}
HEADS = {"mlp": "mlp3", "linear": "linear"}  # of model.cls_head
PRECISIONS = {"16": "fp16", "16-mixed": "fp16", "bf16": "bf16", "bf16-mixed": "bf16", "32": "fp32", "32-true": "fp32"}
IDLE = {
    "data.data_dir": "the recipe says where data sets are; --data_root moves them",
    "data.num_workers": "clouds are read through a memory map, without workers",
    "data.in_memory": "clouds are read through a memory map",
    "data.split": "the recipe says which clouds are read",
    "data.perturbed": "the recipe says which clouds are read",
    "model.svm_validation": "the recipe has the sets of the linear SVM",
    "trainer": "this program has a loop of its own",
}
WEIGHTS = "model.pretrained_ckpt_path"


class Program(NamedTuple):
    """One of the published programs.

    Args:
        recipe: what it runs, where no --config names another one.
        flags: of `main.py`, by sub-command.
        weights: flag of `main.py` that takes pre-trained weights, by sub-command.
    """

    recipe: str
    flags: Mapping[str, Sequence[str]]
    weights: Mapping[str, str]


_TASK = {"fit": ("--finetune_model",), "validate": ("--test",), "test": ("--test",)}
_START = dict.fromkeys(_TASK, "--ckpts")
PROGRAMS = {
    "pointjepa": Program(
        "configs/Point-JEPA/pretraining/shapenet.yaml",
        {"fit": (), "validate": ("--test_svm", "modelnet40")},
        {"fit": "--start_ckpts", "validate": "--ckpts"},
    ),
    "pointjepa.tasks.classification": Program("configs/Point-JEPA/classification/modelnet40.yaml", _TASK, _START),
    "pointjepa.tasks.part_segmentation": Program("configs/Point-JEPA/segmentation/shapenetpart.yaml", _TASK, _START),
    "pointjepa.eval.voting": Program(
        "configs/Point-JEPA/classification/modelnet40.yaml", {"": ("--test", "--vote")}, {"": "--ckpts"}
    ),
}
VOTE_ITERATIONS = 300


def parse(program: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of one of `PROGRAMS`.

    Raises:
        UserError: a key or value that is not offered, or what `parse_args` objects to.
    """
    kind = PROGRAMS[program]
    command, argv = ("", argv) if "" in kind.flags else (argv[0] if argv else "", argv[1:])
    if command in ("-h", "--help"):
        command, argv = next(iter(kind.flags)), ["--help"]
    if command not in kind.flags:
        raise UserError(f"{program} {command}: is no command; choose one of {', '.join(kind.flags)}")
    given, rest = _parser(program).parse_known_args(argv)
    dotted, rest = _dotted(rest)
    recipe, values = _recipe(given.config or [kind.recipe], kind.recipe)
    values |= dotted
    if program.endswith("voting"):
        values.setdefault("vote_iterations", VOTE_ITERATIONS)
    values |= {
        name: getattr(given, name) for name in vars(given) if name != "config" and getattr(given, name) is not None
    }
    settings, flags, notes = _translate(values, kind.weights[command])
    front = [part for text in settings for part in ("--set", text)]
    args = parse_args(["--config", recipe, *front, *kind.flags[command], *flags, *rest], prog=f"python -m {program}")
    args.notes += notes
    return args


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=f"python -m {program}", description="Point-JEPA, by the published flags or by those of main.py.",
        epilog=f"Keys: --model.x, --data.x, --trainer.x. All flags of main.py work too:\n\n{build_parser().format_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        metavar="YAML",
        help="published path, file of that layout, or recipe; the last counts",
    )
    parser.add_argument("--seed_everything", type=int, metavar="N", help="seed of the run (--seed)")
    if program.endswith("voting"):
        parser.add_argument("--finetuned_ckpt_path", metavar="PTH", help="the classifier (--ckpts)")
        parser.add_argument("--vote_num", type=int, metavar="N", help="passes of a round: 10")
        parser.add_argument("--vote_iterations", type=int, metavar="N", help="rounds (--vote_rounds, default 300)")
    return parser


def _dotted(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take `--section.key value` and `--section.key=value` out of a command line."""
    values, rest, waiting = {}, [], list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.partition(".")[0] not in ("model", "data", "trainer"):
            rest.append(word)
            continue
        if not equals and not waiting:
            raise UserError(f"--{name}: needs a value")
        values[name] = parse_value(text if equals else waiting.pop(0), f"--{name}")
    return values, rest


def _recipe(paths: Sequence[str], default: str) -> tuple[str, dict[str, Any]]:
    """Return the recipe of several configurations, which the last one names, and the keys of those that are files of LightningCLI."""
    recipe, values = default, {}
    for path in paths:
        file = Path(path)
        tree = read_yaml(file) if file.is_file() else {}
        if not file.is_file() or "NAME" in (tree.get("model") or {}) or "_base_" in tree:
            find_recipe(path)
            recipe = path
            continue
        published = [
            name
            for name in OWN_PATHS
            if "Point-JEPA/" in name and file.as_posix().endswith(name.removeprefix("configs/"))
        ]
        recipe = published[0] if published else recipe
        values |= dict(_flat(tree))
    return str(lookup(recipe).path if lookup(recipe) else recipe), values


def _flat(tree: Mapping, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a file by their dotted names, two levels deep."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and not before:
            yield from _flat(value, f"{name}.")
        else:
            yield f"{before}{name}", value


def _translate(values: Mapping[str, Any], weights: str) -> tuple[list[str], list[str], list[str]]:
    """Return settings, flags and notes that stand for published keys."""
    settings, flags, notes = [], [], []
    for name, value in values.items():
        section = name.partition(".")[0]
        if name in KEYS:
            settings += [f"{key}={_text(value)}" for key in KEYS[name]]
            settings += ["max_epoch_inclusive=false"] if name == "trainer.max_epochs" else []
        elif name in FLAGS:
            flags += [FLAGS[name], str(value)]
        elif name == WEIGHTS:
            flags += [weights, str(value)] if value is not None else []
        elif name == "trainer.precision":
            flags += ["--precision", _choice(name, str(value), PRECISIONS)]
        elif name == "model.cls_head":
            settings.append(f"model.head={_choice(name, value, HEADS)}")
        elif name in FIXED:
            if value != FIXED[name]:
                raise UserError(f"{name}: is {value}; only {FIXED[name]} is offered")
        elif name in IDLE or section in IDLE:
            notes.append(f"{name} has no effect: {IDLE.get(name) or IDLE[section]}")
        elif name == "model.pretrained_ckpt_ignore_encoder_layers":
            if value:
                raise UserError(f"{name}: is {value}; dropping blocks of a checkpoint is not offered, leave it out")
        elif section == "model":
            settings.append(f"{name}={_text(value)}")  # a key that neither knows is refused with the recipe
        else:
            raise UserError(f"{name}: is unknown; {suggest(name, [*KEYS, *FLAGS, *FIXED, *IDLE])}")
    return settings, flags, notes


def _choice(name: str, value: Any, known: Mapping[str, str]) -> str:
    if value not in known:
        raise UserError(f"{name}: is {value!r}; choose one of {', '.join(known)}")
    return known[value]


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
