"""The flags of 3DETR's program."""

import pytest

from tools.launch import load_recipe
from tools.published.detection import translate
from utils.config.cli import parse_args
from utils.errors import UserError

COSTS = "--matcher_giou_cost 2 --matcher_cls_cost 1 --matcher_center_cost 0 --matcher_objectness_cost 0 --nqueries 256"
WEIGHTS = "--loss_giou_weight 1 --loss_no_object_weight 0.25 --save_separate_checkpoint_every_epoch -1"
PLACES = "--checkpoint_dir outputs/run --dataset_root_dir D --meta_data_dir M"
PUBLISHED = f"--dataset_name scannet --max_epoch 1080 {COSTS} {WEIGHTS} {PLACES}".split(" ")


def config_of(*flags):
    args = parse_args(translate(flags))
    return args, load_recipe(args.config, overrides=args.set)


@pytest.mark.parametrize(
    ("flags", "name"), [((), "3detr"), (("--enc_type", "masked", "--enc_dropout", "0.3"), "3detr-m")]
)
def test_the_published_commands_are_the_recipes(flags, name):
    args, config = config_of(*PUBLISHED, *flags)
    recipe = load_recipe(f"cfgs/detection/{name}/scannet.yaml")
    assert (
        config.model == recipe.model and config.optimizer == recipe.optimizer and config.scheduler == recipe.scheduler
    )
    assert (config.total_bs, config.max_epoch, config.grad_norm_clip) == (8, 1080, 0.1)
    assert config.dataset.val.ROOT == "D" and config.dataset.train.META == "M" and config.dataset.val.subset == "val"
    assert args.scratch_model and args.val_freq == 10 and args.exp_name == "run"


def test_defaults_are_those_of_the_program():
    _, config = config_of(
        "--dataset_name", "scannet", "--enc_type", "masked", "--filter_biases_wd", "--enc_nlayers", "7"
    )
    model = config.model
    assert (model.loss_giou_weight, model.loss_no_object_weight, model.enc_dropout, model.enc_nlayers) == (
        0,
        0.2,
        0.1,
        3,
    )
    assert config.max_epoch == 720 and not config.optimizer.decay_all and not config.optimizer.token_rule
    args, _ = config_of("--test_only", "--test_ckpt", "a.pth", "--nqueries", "128")
    assert args.test and args.ckpts == "a.pth" and "model.nqueries=128" in args.set


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "sunrgbd"], "sunrgbd: is not here"),
        (["--enc_type", "maskedv2"], "choose vanilla or masked"),
        (["--test_only"], "needs --test_ckpt"),
        (["--final_lr", "1e-5"], "ends at 1e-06"),
    ],
)
def test_what_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        translate(flags)
