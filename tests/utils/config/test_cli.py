"""Flags: the published ones and ours, what they become, and which combinations are refused."""

import pytest

from utils import ROOT, __version__
from utils.config.cli import build_parser, parse_args
from utils.errors import UserError

CONFIG = ["--config", "cfgs/debug/point-m2ae.yaml"]
# Flags of the published main programs, in the way their commands use them.
PUBLISHED = [
    ["--launcher", "pytorch", "--sync_bn", "--local_rank", "1", "--num_workers", "8", "--seed", "0", "--deterministic"],
    ["--exp_name", "svm", "--test_svm", "modelnet40", "--ckpts", "a.pth"],
    ["--exp_name", "svm", "--test_svm", "scan", "--ckpts", "a.pth"],
    ["--finetune_model", "--exp_name", "finetune", "--ckpts", "a.pth", "--val_freq", "2", "--vote"],
    ["--finetune_model", "--exp_name", "fs", "--ckpts", "a.pth", "--way", "5", "--shot", "10", "--fold", "0"],
    ["--scratch_model", "--loss", "cd1"],
    ["--test", "--ckpts", "a.pth", "--vote", "--exp_name", "vote"],
    ["--start_ckpts", "a.pth", "--mode", "median"],
    ["--resume", "--exp_name", "pre-train"],
]


@pytest.mark.parametrize("flags", PUBLISHED, ids=lambda flags: flags[0])
def test_published_flags(flags):
    args = parse_args([*CONFIG, *flags])
    for flag in (flag for flag in flags if flag.startswith("--")):
        value = getattr(args, flag[2:])
        assert value is not None and value is not False and value != -1


def test_defaults():
    args = parse_args(CONFIG)
    assert (args.seed, args.exp_name, args.val_freq, args.launcher) == (None, "default", 1, "none")
    assert (args.way, args.shot, args.fold, args.vote_rounds) == (-1, -1, -1, None)
    assert args.set == [] and args.notes == [] and args.test_svm is None and args.device is None


def test_our_flags():
    flags = "--set a.b=1 --set c=[1,2] --device cpu --compile --data_root /d --seeds 0,1 2 --transfer linear --overwrite --debug"
    args = parse_args([*CONFIG, *flags.split(), "--method", "gm3d", "--vote_rounds", "49", "--test", "--ckpts", "a"])
    assert args.set == ["a.b=1", "c=[1,2]", "transfer=linear", "model.head=linear"]
    assert args.seeds == [0, 1, 2] and args.vote_rounds == 49
    assert args.compile and args.overwrite and args.debug and args.data_root == "/d"
    assert parse_args([*CONFIG, "--way", "5", "--shot", "10", "--fold", "all"]).fold == "all"


def test_flags_that_are_keys_become_overrides():
    args = parse_args([*CONFIG, "--seed", "3", "--precision", "bf16", "--set", "seed=1", "--as_published"])
    assert args.set == ["legacy=true", "model.legacy=true", "seed=1", "seed=3", "precision=bf16"]
    assert parse_args([*CONFIG, "--rate", "0.1"]).set == ["dataset.train.first_fraction=0.1"]


def test_flags_without_effect_are_noted():
    args = parse_args([*CONFIG, "--loss", "cd1", "--local-rank", "2"])
    assert len(args.notes) == 2 and "--loss has no effect" in args.notes[0] and "model.loss" in args.notes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--test --resume --ckpts a", "--test and --resume contradict each other"),
        ("--resume --start_ckpts a", "--resume and --start_ckpts contradict"),
        ("--resume --overwrite", "--resume and --overwrite contradict"),
        ("--test", "--test needs --ckpts with a fine-tuned classifier; add --ckpts PATH"),
        ("--test_svm modelnet40", "--test_svm modelnet40 needs --ckpts with a pre-trained encoder; add --ckpts PATH"),
        ("--scratch_model --finetune_model --ckpts a", "--scratch_model trains from random weights, but --ckpts"),
        ("--val_freq 0", "--val_freq 0: must be at least 1"),
        ("--finetune_model --vote_rounds 0", "--vote_rounds 0: must be at least 1"),
        ("--corruptions d", "--corruptions d: evaluates a fine-tuned classifier; add --test"),
        ("--test --ckpts a --corruptions d --vote", "--corruptions is evaluated without voting"),
        ("--test --ckpts a --reference r.json", "--reference r.json: goes with --corruptions DIR"),
        ("--probe knn", "--probe knn evaluates the features of --test_svm"),
        ("--vote", "--vote goes with a classifier: add --finetune_model"),
        ("--transfer linear", "--transfer goes with a classifier"),
        ("--seed -1", "seed -1: must not be negative"),
        ("--seeds 0,-2", "seed -2: must not be negative"),
        ("--seeds 0,x", "--seeds 0,x: are no whole numbers"),
        ("--seeds 1 1", "--seeds 1,1: names a seed twice"),
        ("--seeds 0,1 --seed 2", "--seed and --seeds contradict each other"),
        ("--way 5 --shot 10", "--way 5 --shot 10: few-shot needs all of"),
        ("--exp_name ../other", "--exp_name '../other': becomes a folder"),
        ("--exp_name /abs", "--exp_name '/abs': becomes a folder"),
    ],
)
def test_refused_combinations(flags, message):
    with pytest.raises(UserError, match=message):
        parse_args([*CONFIG, *flags.split()])


def test_missing_config():
    with pytest.raises(UserError, match="--config is missing; give a recipe, for example --config cfgs/debug"):
        parse_args([])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test_svm", "shapenet"], "argument --test_svm: invalid choice: 'shapenet'.*main.py --help explains"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--exp_nam", "a"], "--exp_nam: is no flag; did you mean --exp_name"),
        (["--exp-name", "a"], "--exp-name: is no flag; did you mean --exp_name"),
        (["--finetune"], "--finetune: is no flag; did you mean --finetune_model"),
        (["--zzz"], "--zzz: is no flag; main.py --help lists the flags"),
        (
            ["optimizer.kwargs.lr=0.1"],
            "belongs to no flag; keys of the recipe are set with --set optimizer.kwargs.lr=0.1",
        ),
        (["--optimizer.kwargs.lr=0.1"], "is no flag; keys of the recipe are set with --set optimizer.kwargs.lr=0.1"),
        (["more"], "more: belongs to no flag"),
        (["--allow_changes"], "--allow_changes: goes with --resume"),
    ],
)
def test_unknown_flags_and_values(flags, message):
    with pytest.raises(UserError, match=message):
        parse_args([*CONFIG, *flags])


def test_a_misspelt_config_is_named():
    with pytest.raises(UserError, match="--confg: is no flag; did you mean --config"):
        parse_args(["--confg", "cfgs/debug/point-m2ae.yaml"])


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_args(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"m2ae {__version__}\n"
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()


def test_help_is_grouped_and_complete(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = capsys.readouterr().out
    for title in ("what to do:", "configuration:", "the run:", "machine:", "evaluation:", "accepted without effect:"):
        assert title in text
    assert all(action.help for action in build_parser()._actions)
