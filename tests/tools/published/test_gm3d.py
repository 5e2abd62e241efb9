"""The published command lines of GeoMask3D, turned into ours."""

import pytest
import yaml

from tools.launch import load_recipe
from tools.published.gm3d import parse_finetune, parse_pretrain
from tools.published.paths import find_recipe
from tools.run_folder import experiment_folder
from utils import ROOT
from utils.config.yaml import save_config
from utils.errors import UserError


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def resolved(args):
    return load_recipe(args.config, overrides=args.set, method=args.method)


def published_file(tmp_path, model, bs=64):
    """A file as published: class names of the base methods, and optimizer blocks that the published program does not read."""
    tree = {
        "optimizer": {"type": "AdamW", "kwargs": {"lr": 0.001, "weight_decay": 0.05}},
        "scheduler": {"type": "CosLR", "kwargs": {"epochs": 300, "initial_epochs": 10}},
        "dataset": {
            "train": {"_base_": "cfgs/dataset/Synthetic.yaml", "others": {"subset": "train", "npoints": 1024, "bs": bs}}
        },
        "model": model,
        "max_epoch": 300,
    }
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(tree, default_flow_style=True))
    return str(path)


def test_published_pretraining_command():
    """The recipe says what the flags of the published program have as defaults; flags change it."""
    args = parse_pretrain(["--config", "cfgs/pretrain.yaml", "--output_dir", "out", "--log_dir", "log"])
    assert find_recipe(args.config, args.method).path == ROOT / "cfgs/pre-training/gm3d.yaml"
    assert experiment_folder(args, "cfgs/pretrain.yaml").as_posix() == "out" and args.log_dir == "log"
    config = resolved(args)
    assert config.model.NAME == "GM3D" and config.max_epoch == 400 and config.optimizer.kwargs.lr == 1e-3

    flags = "--epochs 100 --warmup_epochs 5 --batch_size 128 --mode usual --after_200_epoch True --loss_multiply_by 2 3 --after_epoch 7"
    flags += " --dino_path t.pth --relative False --mask_ratio 0.7 --bf16 --seed 3 --min_lr 1e-5 --accum_iter 2"
    flags += " --shared_learnable_tokens True"
    args = parse_pretrain(
        ["--name_config", "cfgs/pretrain.yaml", "--experiment", "x", "--output_dir", "out", *flags.split()]
    )
    config, guidance = resolved(args), resolved(args).model.guidance
    assert experiment_folder(args, "any.yaml").as_posix() == "out/x" and args.exp_name == "x"
    assert (config.max_epoch, config.max_epoch_inclusive, config.scheduler.kwargs.epochs) == (100, False, 100)
    assert (config.scheduler.kwargs.initial_epochs, config.scheduler.kwargs.min_lr) == (5, 1e-5)
    assert config.optimizer.kwargs.lr == pytest.approx(1e-3 * 128 * 2 / 256) and config.step_per_update == 2
    assert (guidance.mode, guidance.half, guidance.final_fraction, guidance.relative) == ("usual", True, 0.5, False)
    assert (guidance.weights, guidance.weights_from, guidance.teacher) == ([2.0, 3.0], 7, "t.pth")
    assert guidance.shared_mask_token and config.model.transformer_config.mask_ratio == 0.7
    assert config.precision == "bf16" and config.seed == 3 and config.total_bs == 256


@pytest.mark.parametrize("name, ours", [("Point_MAE", "GM3D"), ("Point_M2AE", "GM3D_Point_M2AE")])
def test_published_pretraining_file(tmp_path, name, ours):
    """Its NAME is the base method's, its batch stands in the data set, and the optimiser comes from the flags."""
    path = published_file(tmp_path, {"NAME": name, "group_size": 32} if name == "Point_MAE" else {"NAME": name})
    config = resolved(parse_pretrain(["--config", path, "--mask_ratio", "0.5", "--set", "total_bs=16"]))
    assert ours == config.model.NAME and config.total_bs == 16  # what is said with --set stands
    assert getattr(config.model, "transformer_config", config.model).mask_ratio == 0.5
    config = resolved(parse_pretrain(["--config", path]))
    assert config.total_bs == 64 and config.max_epoch == 400 and not config.max_epoch_inclusive
    assert (config.scheduler.type, config.scheduler.lag, config.scheduler.kwargs.initial_epochs) == (
        "HalfCosine",
        0,
        40,
    )
    kwargs = config.optimizer.kwargs
    assert (kwargs.lr, kwargs.betas, kwargs.weight_decay, config.grad_norm_clip) == (1e-3, [0.9, 0.95], 0.05, 5)
    assert not config.optimizer.token_rule


def test_published_finetuning_command(tmp_path):
    args = parse_finetune(["--config", "cfgs/finetune_scan_hardest.yaml", "--output_dir", "out", "--log_dir", "log"])
    assert args.finetune_model and find_recipe(args.config, args.method).path.parent.name == "gm3d"
    flags = [
        "--finetune",
        "a.pth",
        "--teacher",
        "--layer_decay",
        "0.5",
        "--clip_grad",
        "3",
        "--lr",
        "1e-4",
        "--drop_path",
        "0.1",
        "--aa",
        "x",
    ]
    args = parse_finetune(["--config", "cfgs/fine-tuning/gm3d/scan_pb.yaml", *flags])
    config = resolved(args)
    assert args.ckpts == "a.pth" and args.averaged and args.method is None  # the checkpoint says the method
    assert (config.optimizer.layer_decay, config.grad_norm_clip, config.optimizer.kwargs.lr) == (0.5, 3, 1e-4)
    assert [note for note in args.notes if "--drop_path" in note] and [note for note in args.notes if "--aa" in note]
    args = parse_finetune(
        ["--config", "cfgs/fine-tuning/gm3d/scan_pb.yaml", "--eval", "--finetune", "a.pth", "--batch_size", "80"]
    )
    assert args.test and not args.finetune_model and not args.averaged
    assert resolved(args).optimizer.kwargs.lr == pytest.approx(1.5625e-4)
    path = published_file(tmp_path, {"NAME": "PointTransformer", "cls_dim": 15})
    config = resolved(parse_finetune(["--config", path]))
    assert config.model.NAME == "GM3D_PointTransformer" and config.optimizer.layer_decay == 0.75
    assert config.optimizer.kwargs.lr == pytest.approx(7.8125e-5) and config.scheduler.kwargs.min_lr == 1e-6


def test_the_configuration_of_a_run_is_taken_as_it_is(tmp_path):
    """It is no published file: nothing stands over it but what is given."""
    config = resolved(parse_pretrain(["--config", "cfgs/debug/gm3d.yaml"]))
    save_config(config, tmp_path / "config.yaml")
    again = resolved(parse_pretrain(["--config", str(tmp_path / "config.yaml"), "--min_lr", "1e-5"]))
    assert again.scheduler.kwargs.min_lr == 1e-5 and again.max_epoch == config.max_epoch == 2
    assert again.optimizer == config.optimizer and again.model == config.model


def test_resume_takes_a_path_or_none_as_published():
    for given in (["--resume"], ["--resume", "some.pth"]):
        assert parse_pretrain(["--config", "cfgs/debug/gm3d.yaml", *given]).resume


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--shared_opt", "False"], "two optimizers are not offered"),
        (["--classification", "True"], "training on labels at the same time is not offered"),
        (["--learn_feature_loss", "clip"], "--learn_feature_loss clip: is not offered"),
        (["--learn_feature_loss", "none"], "feature mode needs the teacher"),
        (["--byol", "x"], "--byol x: is not offered"),
    ],
)
def test_what_is_not_offered_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse_pretrain(["--config", "cfgs/debug/gm3d.yaml", *flags])


def test_configuration_is_needed_and_booleans_are_read(capsys):
    with pytest.raises(UserError, match="--config is missing"):
        parse_finetune(["--output_dir", "x"])
    with pytest.raises(UserError, match="'perhaps' is neither True nor False"):
        parse_pretrain(["--config", "cfgs/debug/gm3d.yaml", "--relative", "perhaps"])
    with pytest.raises(SystemExit) as stopped:
        parse_pretrain(["--help"])
    assert stopped.value.code == 0 and "--dino_path" in capsys.readouterr().out
