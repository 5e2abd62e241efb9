"""The command line of the main program: the published flags, ours, and the checks between them."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from utils import __version__
from utils.errors import UserError, suggest

PROG = "main.py"
PROBES = ("knn", "logistic")
TRANSFERS = ("full", "mlp3", "linear")
SELECTIONS = ("best_test", "last", "held_out")
TRACKERS = ("wandb", "trackio", "mlflow")
FOLDS = 10  # of few-shot classification
SVM_SETS = ("modelnet40", "scan", "modelnet10", "synthetic", "own")
OVERRIDES = ("seed", "precision", "transfer", "select", "held_out")  # flags that are keys of the recipe
# Published flags that change nothing here: destination -> why.
NO_EFFECT = {
    "loss": "the loss is the key model.loss: --set model.loss=cdl1",
    "local_rank": "torchrun sets LOCAL_RANK",
    "num_workers": "clouds are read through a memory map, without workers",
}


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and which flag may have been meant; it never exits but for --help."""

    def error(self, message: str) -> NoReturn:
        """Raise for a command line that cannot be parsed."""
        raise UserError(f"{message}; {self.prog} --help explains the flags")

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse a command line."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UserError(self._explain(unknown[0]))
        return parsed

    def _explain(self, text: str) -> str:
        name, equals, value = text.partition("=")
        if not name.startswith("-"):
            hint = f"keys of the recipe are set with --set {name}={value}" if equals else "what is it for?"
            return f"{text}: belongs to no flag; {hint}"
        if "." in name and equals:
            return f"{text}: is no flag; keys of the recipe are set with --set {name.lstrip('-')}={value}"
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        wanted = "--" + name.lstrip("-").replace("-", "_")
        return f"{name}: is no flag; {suggest(wanted, known, otherwise=f'{self.prog} --help lists the flags')}"


def build_parser(prog: str | None = None) -> Parser:
    """Return the parser of `main.py`, its flags in groups; `prog` is what it is called, where that is not `main.py`."""
    parser = Parser(
        prog=prog or PROG,
        description="Pre-train, evaluate and fine-tune masked autoencoders of point clouds.",
        epilog="Example: python main.py --config cfgs/debug/point-m2ae.yaml --exp_name first",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"m2ae {__version__}")
    order = "Without any of these flags: pre-training. Of several, --test comes first, then --test_svm."
    _add_task(parser.add_argument_group("what to do", order))
    _add_config(parser.add_argument_group("configuration"))
    _add_run(parser.add_argument_group("the run"))
    _add_machine(parser.add_argument_group("machine"))
    _add_evaluation(parser.add_argument_group("evaluation"))
    _add_ignored(parser.add_argument_group("accepted without effect", "Published flags that nothing needs any more."))
    return parser


def _add_task(group) -> None:
    group.add_argument("--finetune_model", action="store_true", help="fine-tune a classifier, from --ckpts if given")
    group.add_argument("--scratch_model", action="store_true", help="train a classifier from random weights")
    group.add_argument("--test", action="store_true", help="evaluate the fine-tuned classifier in --ckpts")
    group.add_argument(
        "--predict",
        metavar="PATH",
        help="name the parts of own clouds, or find the objects in own scenes, a file or a folder, with the part segmenter or detector in "
        "--ckpts",
    )
    group.add_argument(
        "--category",
        metavar="NAME",
        help="with --predict: category of these clouds (default: the folder of each)",
    )
    group.add_argument(
        "--up", default="y", metavar="AXIS", help="of own clouds (--predict, --input): axis that points up (default: y)"
    )
    group.add_argument(
        "--skip_bad", action="store_true", help="of own clouds: pass over files that cannot be read, and list them"
    )
    group.add_argument(
        "--test_svm", choices=SVM_SETS, nargs="?", const="own",
        help="evaluate the pre-trained encoder in --ckpts by a linear SVM; own, or no name: on the set of the recipe, whichever that is",
    )  # fmt: skip
    group.add_argument(
        "--probe", choices=PROBES, action="append", default=[],
        help="with --test_svm: evaluate the same features by nearest neighbours or logistic regression as well; may be repeated",
    )  # fmt: skip


def _add_config(group) -> None:
    group.add_argument("--config", metavar="YAML", help="recipe in cfgs/, any YAML file, or a published path")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE",
        help="override a key of the recipe; may be repeated: --set optimizer.kwargs.lr=1e-4",
    )  # fmt: skip
    group.add_argument("--method", metavar="NAME", help="method, where a published path does not say it")
    group.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="FILE.py",
        help="Python file that registers further models or data sets; may be repeated, as the key imports of a recipe",
    )  # fmt: skip
    group.add_argument(
        "--data_root", metavar="DIR", help="folder that replaces a leading data/ in the paths of data sets"
    )
    group.add_argument("--as_published", action="store_true", help="repeat the bugs of the published program as well")


def _add_run(group) -> None:
    group.add_argument(
        "--exp_name",
        help="name of the run: experiments/<recipe>/<exp_name>/ (default: default; what evaluates a checkpoint writes into the folder "
        "of the run that it is from)",
    )
    group.add_argument("--mode", choices=("easy", "median", "hard"), help="appended to the name of the run")
    group.add_argument("--resume", action="store_true", help="continue the run of this name, exactly where it stopped")
    group.add_argument(
        "--allow_changes", action="store_true", help="resume with a configuration that changes what comes out"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start the run of this name again, dropping its outputs"
    )
    group.add_argument(
        "--start_ckpts", metavar="PTH",
        help="initial weights for pre-training; where --ckpts is what --tune trained: its base, if that has moved",
    )  # fmt: skip
    group.add_argument(
        "--ckpts", metavar="PTH",
        help="weights for fine-tuning, --test and --test_svm: a file, mini, or a name that python -m tools.weights list shows",
    )  # fmt: skip
    group.add_argument(
        "--tune", metavar="KIND",
        help="what of a classifier or part segmenter trains: full (the default), mlp3 (the published head), linear (one layer as head), or "
        "the head and what is inserted into the frozen encoder: lora, gst, dapt, prompt; only that is saved",
    )  # fmt: skip
    group.add_argument(
        "--transfer", choices=TRANSFERS,
        help="what of a classifier trains: all (full, the default), or only the published head (mlp3) or one linear layer (linear) on the "
        "frozen encoder; as --tune, but checkpoints are whole",
    )  # fmt: skip
    group.add_argument("--seed", type=int, help="seed of the run (default: the recipe's, 0)")
    group.add_argument(
        "--seeds", nargs="+", metavar="SEED", help="run once for each seed, report mean and spread: --seeds 0,1,2"
    )
    group.add_argument(
        "--select", choices=SELECTIONS,
        help="which epoch counts, and which C of the linear SVM: the best on the test set (best_test, the default, as published), the last "
        "one, or the best on clouds of the training set that are held out; these two evaluate the test set once",
    )  # fmt: skip
    group.add_argument(
        "--held_out", type=float, metavar="SHARE",
        help="hold out this share of each class of the training set (default: 0.1 with --select held_out, else none)",
    )  # fmt: skip
    group.add_argument(
        "--rate",
        type=float,
        metavar="SHARE",
        help="train on the first clouds of the training list only, this share of it",
    )
    group.add_argument("--track", choices=TRACKERS, help="send the rows of metrics.jsonl to this service as well")
    group.add_argument("--val_freq", type=int, default=1, metavar="N", help="epochs between evaluations (default: 1)")
    group.add_argument("--debug", action="store_true", help="show the traceback of errors")


def _add_machine(group) -> None:
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there, else cpu)")
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="of the computation (default: the recipe's, fp32)"
    )
    group.add_argument(
        "--micro_batches", type=_micro_batches, default=1, metavar="N",
        help="send each training batch through the model in N micro-batches, or auto: as few as fit into memory; gradients add up to "
        "those of total_bs, but batch norms and masks are those of one micro-batch at a time",
    )  # fmt: skip
    group.add_argument(
        "--cuda_graph", choices=("auto", "on", "off"), default="auto",
        help="record a step once and start it as a whole: auto (the default) on a GPU where that can be, on: or it is an error",
    )  # fmt: skip
    group.add_argument(
        "--evaluation", choices=("auto", "beside", "between"), default="auto",
        help="of pre-training: fit the linear SVM and write checkpoints while the next epoch trains (beside), or before it (between); auto "
        "(the default): while it trains, on a GPU",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument(
        "--launcher", choices=("none", "pytorch"), default="none", help="pytorch: several processes, by torchrun"
    )
    group.add_argument("--sync_bn", action="store_true", help="share batch-norm statistics between processes")
    group.add_argument(
        "--shard_set", action="store_true",
        help="each of several processes keeps and draws a part of the training set of its own, for sets that do not fit one GPU; other "
        "clouds meet in a batch than without",
    )  # fmt: skip
    group.add_argument("--deterministic", action="store_true", help="deterministic kernels, where there are any")


def _add_evaluation(group) -> None:
    group.add_argument("--vote", action="store_true", help="average over augmented passes, with --test or fine-tuning")
    group.add_argument(
        "--vote_rounds", type=int, metavar="R",
        help="rounds of ten passes each (default: 1; with --test --as_published 49 for Point-M2AE, 299 for Point-MAE)",
    )  # fmt: skip
    group.add_argument(
        "--corruptions",
        metavar="DIR",
        help="with --test: evaluate on every corruption of ModelNet40-C in this folder as well",
    )
    group.add_argument(
        "--reference", metavar="JSON",
        help="with --corruptions: error rates of a baseline, for the mean corruption error, such as the corruptions.json of another run",
    )  # fmt: skip
    group.add_argument("--way", type=int, default=-1, help="few-shot: classes, 5 or 10")
    group.add_argument("--shot", type=int, default=-1, help="few-shot: training clouds a class, 10 or 20")
    group.add_argument(
        "--fold", type=_fold, default=-1, help="few-shot: fold, 0 to 9, or all: mean and spread over ten"
    )


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _micro_batches(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _add_ignored(group) -> None:
    group.add_argument("--loss", metavar="NAME", help="key model.loss instead")
    group.add_argument(
        "--local_rank", "--local-rank", dest="local_rank", type=int, metavar="N", help="torchrun sets it"
    )
    group.add_argument("--num_workers", type=int, metavar="N", help="there are no workers")


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse and check the command line.

    Flags that are also keys of the recipe become overrides in `args.set`, besides what `--set` gave: the resolved
    configuration then says what was run. `args.notes` lists flags that were given without effect, for the log.

    Raises:
        UserError: flags that contradict each other or lack another one.
    """
    args = build_parser(prog).parse_args(argv)
    args.notes = [
        f"--{name} has no effect: {why}" for name, why in NO_EFFECT.items() if getattr(args, name) is not None
    ]
    _check(args)
    first = ["legacy=true", "model.legacy=true"] if args.as_published else []
    last = [f"{key}={value}" for key in OVERRIDES if (value := getattr(args, key)) is not None]
    if args.transfer:
        last.append(f"model.head={'linear' if args.transfer == 'linear' else 'mlp3'}")
    if args.rate is not None:
        last.append(f"dataset.train.first_fraction={args.rate}")
    if args.tune:
        last += [f"model.tune.kind={args.tune}", "transfer=full"]
        last += [f"model.head={args.tune}"] if args.tune in ("mlp3", "linear") else []
    args.set = [*first, *args.set, *last]
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise for flags that contradict each other, lack another one or are out of range."""
    if args.config is None:
        raise UserError("--config is missing; give a recipe, for example --config cfgs/debug/point-m2ae.yaml")
    if args.test and args.resume:
        raise UserError("--test and --resume contradict each other: one evaluates, the other trains on; leave one out")
    if args.resume and args.start_ckpts:
        raise UserError(
            "--resume and --start_ckpts contradict each other: a resumed run has its weights; leave one out"
        )
    if args.allow_changes and not args.resume:
        raise UserError("--allow_changes: goes with --resume; add it")
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite contradict each other: continue the run or drop it; leave one out")
    if args.test and args.ckpts is None:
        raise UserError("--test needs --ckpts with a fine-tuned classifier; add --ckpts PATH")
    if args.test_svm and args.ckpts is None:
        raise UserError(f"--test_svm {args.test_svm} needs --ckpts with a pre-trained encoder; add --ckpts PATH")
    _check_predict(args)
    if args.probe and not args.test_svm:
        raise UserError(f"--probe {args.probe[0]} evaluates the features of --test_svm; add --test_svm and a data set")
    if args.scratch_model and args.finetune_model and args.ckpts:
        raise UserError("--scratch_model trains from random weights, but --ckpts gives weights; leave one out")
    if args.tune and args.transfer:
        raise UserError("--tune and --transfer say the same; leave one out")
    if args.tune and args.test_svm:
        raise UserError("--tune: goes with a classifier or part segmenter, not with --test_svm; leave one out")
    classifies = args.test or args.finetune_model or args.scratch_model
    for name in ("transfer", "vote", "vote_rounds"):
        if getattr(args, name) and not classifies:
            raise UserError(f"--{name} goes with a classifier: add --finetune_model, --scratch_model or --test")
    for name in ("select", "held_out"):
        if getattr(args, name) is not None and (args.test or args.predict):
            raise UserError(f"--{name}: is for training and --test_svm; an evaluation selects nothing, leave it out")
    if args.track and find_spec(args.track) is None:
        raise UserError(f"--track {args.track}: is not installed; pip install {args.track}, or leave it out")
    if args.corruptions and not args.test:
        raise UserError(
            f"--corruptions {args.corruptions}: evaluates a fine-tuned classifier; add --test and --ckpts PATH"
        )
    if args.corruptions and (args.vote or args.vote_rounds):
        raise UserError("--corruptions is evaluated without voting; leave out --vote and --vote_rounds")
    if args.reference and not args.corruptions:
        raise UserError(f"--reference {args.reference}: goes with --corruptions DIR; add it")
    for name in ("val_freq", "vote_rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if args.micro_batches != "auto" and args.micro_batches < 1:
        raise UserError(f"--micro_batches {args.micro_batches}: must be at least 1, or auto")
    if args.micro_batches == "auto" and args.launcher != "none":
        raise UserError("--micro_batches auto: tries what fits in one process only; give a number with --launcher")
    _check_seeds(args)
    shots = {name: getattr(args, name) for name in ("way", "shot", "fold")}
    if any(value != -1 for value in shots.values()) and any(value != "all" and value < 0 for value in shots.values()):
        given = " ".join(f"--{name} {value}" for name, value in shots.items() if value != -1)
        raise UserError(
            f"{given}: few-shot needs all of --way, --shot and --fold, for example --way 5 --shot 10 --fold 0"
        )
    args.named = args.exp_name is not None
    args.exp_name = args.exp_name if args.named else "default"
    name = Path(args.exp_name)
    if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in args.exp_name:
        raise UserError(f"--exp_name {args.exp_name!r}: becomes a folder below experiments/; give a plain name")


def _check_predict(args: argparse.Namespace) -> None:
    if args.category and not args.predict:
        raise UserError(f"--category {args.category}: goes with --predict PATH; add it")
    if not args.predict and (args.skip_bad or args.up != "y"):
        raise UserError("--up and --skip_bad: go with --predict PATH, or with --input of main_vis.py; add it")
    if not args.predict:
        return
    if args.ckpts is None:
        raise UserError("--predict needs --ckpts with a trained part segmenter or detector; add --ckpts PATH")
    for name in ("test", "test_svm", "resume", "finetune_model", "scratch_model", "vote"):
        if getattr(args, name):
            raise UserError(f"--predict and --{name} contradict each other; leave one out")


def _check_seeds(args: argparse.Namespace) -> None:
    """Turn `--seeds` into a list of numbers and raise for what is none."""
    if args.seeds is not None:
        parts = [part for text in args.seeds for part in text.split(",") if part]
        if not parts or not all(part.lstrip("-").isdigit() for part in parts):
            raise UserError(f"--seeds {' '.join(args.seeds)}: are no whole numbers; give, for example, --seeds 0,1,2")
        args.seeds = [int(part) for part in parts]
        if len(set(args.seeds)) < len(args.seeds):
            raise UserError(f"--seeds {','.join(parts)}: names a seed twice; leave one out")
        if args.seed is not None:
            raise UserError("--seed and --seeds contradict each other: leave one out")
    for seed in [args.seed, *(args.seeds or [])]:
        if seed is not None and seed < 0:
            raise UserError(f"seed {seed}: must not be negative")
