"""Keys and files of Point-JEPA's own programs."""

from pathlib import Path

import pytest

from tools.launch import load_recipe
from tools.published.point_jepa import PROGRAMS, parse
from utils.errors import UserError

CLASSIFICATION = "pointjepa.tasks.classification"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config_of(program, line):
    args = parse(program, line.split())
    return args, load_recipe(args.config, overrides=args.set)


def test_keys_of_the_command_line():
    """Published keys set those of ours that mean the same; flags of ours pass."""
    line = "fit --model.tokenizer_num_groups 32 --model.encoder_depth=6 --model.learning_rate 0.002 --model.encoder_learning_rate=1e-4"
    line += " --model.encoder_unfreeze_epoch 3 --model.encoder_freeze_layers [0,1] --model.cls_head linear --data.batch_size 16"
    line += " --trainer.max_epochs 5 --trainer.precision 16 --trainer.gradient_clip_val 3 --trainer.devices 2"
    line += " --exp_name a --seed_everything 4"
    args, config = config_of(CLASSIFICATION, line)
    assert (args.exp_name, args.finetune_model, args.ckpts) == ("a", True, None)
    assert (config.model.num_group, config.model.depth, config.model.head) == (32, 6, "linear")
    assert (config.model.encoder_unfreeze_epoch, config.model.encoder_freeze_layers) == (3, [0, 1])
    assert (config.optimizer.kwargs.lr, config.optimizer.encoder_lr) == (0.002, 1e-4)
    assert (config.total_bs, config.max_epoch, config.max_epoch_inclusive, config.grad_norm_clip) == (16, 5, False, 3)
    assert (config.scheduler.kwargs.epochs, config.precision, config.seed) == (5, "fp16", 4)
    assert args.notes == ["trainer.devices has no effect: this program has a loop of its own"]


def test_files_of_the_published_layout():
    """Their place says the recipe, their keys stand over it, later files over earlier ones, and flags over all."""
    folder = Path("clone/configs/Point-JEPA/pretraining")
    folder.mkdir(parents=True)
    text = "seed_everything: 1\nmodel:\n  tokenizer_group_size: 16\n  encoder_dim: 192\n  encoder_heads: 6\n  ema_tau_min: 0.99\n"
    text += "  svm_validation: {modelnet40: {class_path: X}}\n  encoder_add_pos_at_every_layer: true\n"
    (folder / "shapenet.yaml").write_text(text + "data:\n  batch_size: 64\n  data_dir: d\ntrainer:\n  logger: true\n")
    Path("more.yaml").write_text("data:\n  batch_size: 8\n")
    args, config = config_of("pointjepa", f"fit -c {folder}/shapenet.yaml -c more.yaml --model.ema_tau_min 0.9")
    assert (config.model.NAME, config.model.group_size, config.model.trans_dim, config.model.encoder_dims) == (
        "Point_JEPA",
        16,
        192,
        192,
    )
    assert (config.model.ema_tau_min, config.total_bs, config.seed) == (0.9, 8, 1)
    assert [note.partition(" ")[0] for note in args.notes] == [
        "model.svm_validation",
        "data.data_dir",
        "trainer.logger",
    ]


def test_votes():
    args = parse("pointjepa.eval.voting", ["--finetuned_ckpt_path", "a.pth"])
    assert (args.test, args.vote, args.vote_rounds, args.ckpts) == (True, True, 300, "a.pth")
    assert parse("pointjepa.eval.voting", ["--finetuned_ckpt_path", "a", "--vote_iterations", "3"]).vote_rounds == 3


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        ("pointjepa", "train", "pointjepa train: is no command; choose one of fit, validate"),
        ("pointjepa", "fit --model.predictor_mlp_ratio 2.0", "predictor_mlp_ratio: is 2.0; only 4.0 is offered"),
        ("pointjepa", "fit --trainer.precision 64", "trainer.precision: is '64'; choose one of 16"),
        ("pointjepa", "fit --data.batchsize 4", "data.batchsize: is unknown; did you mean data.batch_size"),
        ("pointjepa", "fit --model.learning_rate", "--model.learning_rate: needs a value"),
        ("pointjepa", "fit -c configs/Point-JEPA/x.yaml", "configs/Point-JEPA/x.yaml: configuration does not exist"),
        (CLASSIFICATION, "fit --model.cls_head wide", "model.cls_head: is 'wide'; choose one of mlp, linear"),
        ("pointjepa.eval.voting", "--finetuned_ckpt_path a --vote_num 5", "vote_num: is 5; only 10 is offered"),
        ("pointjepa.eval.voting", "", "--test needs --ckpts"),
    ],
)
def test_what_is_refused(program, line, message):
    with pytest.raises(UserError, match=message):
        parse(program, line.split())
    assert program in PROGRAMS


def test_an_unknown_key_of_the_model_is_named():
    with pytest.raises(UserError, match="encoder_deph"):
        config_of("pointjepa", "fit --model.encoder_deph 3")
