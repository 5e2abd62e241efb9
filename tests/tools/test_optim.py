"""Schedules and parameter groups against the published ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tools.optim import LOWEST_RATE, build_optimizer, build_schedule, check_training, group_rate, parameter_groups
from utils.config.merge import merge
from utils.config.schema import OptimizerConfig, OptimizerKwargs, RunConfig, SchedulerConfig, SchedulerKwargs
from utils.errors import UserError

DATA = Path(__file__).parent.parent / "parity" / "data" / "point-m2ae"


def schedule(kind="CosLR", base=1e-3, lag=1, **kwargs):
    config = merge(SchedulerConfig, {"type": kind, "lag": lag, "kwargs": kwargs}, "scheduler")
    return build_schedule(config, base)


@pytest.mark.parametrize(
    ("name", "base", "epochs"),
    [
        ("pretrain_lr_used_in_epoch", 1e-3, 400),
        ("finetune_lr_used_in_epoch", 5e-4, 300),
        ("partseg_lr_used_in_epoch", 2e-4, 300),
    ],
)
def test_cosine_runs_at_the_published_rates(name, base, epochs):
    published = np.load(DATA / "schedules.npz")[name]
    rate = schedule(base=base, epochs=epochs, initial_epochs=10)
    np.testing.assert_allclose([rate(epoch, 0.0) for epoch in range(len(published))], published, rtol=1e-9)


def test_lag_can_be_switched_off():
    late, exact = schedule(epochs=20, initial_epochs=4), schedule(epochs=20, initial_epochs=4, lag=0)
    assert late(0) == late(1) == LOWEST_RATE == exact(0)
    assert [late(e + 1) for e in range(25)] == [exact(e) for e in range(25)]
    assert exact(4) < 1e-3 and exact(20) == LOWEST_RATE  # the warm-up is not subtracted from the cosine


def test_schedules_may_follow_the_curve_within_an_epoch():
    config = merge(
        SchedulerConfig, {"lag": 0, "per_step": True, "kwargs": {"epochs": 4, "initial_epochs": 1}}, "scheduler"
    )
    rate = build_schedule(config, 1e-3)
    assert rate(0, 0.5) == pytest.approx(0.5e-3, rel=1e-2) and rate(2, 0.0) == pytest.approx(0.5e-3, rel=1e-2)
    assert rate(3, 0.0) > rate(3, 0.5) > rate(3, 0.99)


def test_other_schedules():
    rate = schedule("LambdaLR", lag=0, lr_decay=0.5, decay_step=2, lowest_decay=0.1)
    assert [rate(e) for e in (0, 2, 20)] == pytest.approx([1e-3, 5e-4, 1e-4])
    rate = schedule("StepLR", lag=0, step_size=3, gamma=0.1)
    assert [rate(e) for e in (0, 2, 3, 6)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert schedule("function", lag=0)(7) == 1e-3


def test_token_rule_spares_the_embeddings():
    model = build_model({"NAME": "Point_M2AE"})
    spared, decayed = (group["params"] for group in parameter_groups(model, 0.05))
    assert (len(spared), len(decayed)) == (187, 79)
    plain, rest = (group["params"] for group in parameter_groups(model, 0.05, token_rule=False))
    assert len(plain) < 187 and len(plain) + len(rest) == 266


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_optimizers_take_a_step(kind):
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = build_optimizer(
        model, merge(OptimizerConfig, {"type": kind, "kwargs": {"lr": 0.1, "weight_decay": 0.01}}, "optimizer")
    )
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.01]


def test_recipes_that_cannot_train_say_what_is_missing():
    with pytest.raises(UserError, match="optimizer: is missing"):
        check_training(RunConfig(model=None))
    keys = {
        "model": {},
        "optimizer": {"kwargs": {"lr": 1e-3}},
        "scheduler": {"kwargs": {"epochs": 3}},
        "max_epoch": 3,
        "dataset": {"train": {}},
    }
    with pytest.raises(UserError, match=r"scheduler\.kwargs\.initial_epochs: is missing, CosLR needs it"):
        check_training(merge(RunConfig, keys, ""))


def test_half_cosine_warms_up_from_zero_and_ends_at_its_own_rate():
    kwargs = SchedulerKwargs(epochs=10, initial_epochs=2, min_lr=0.1)
    rate = build_schedule(SchedulerConfig("HalfCosine", kwargs, lag=0, per_step=True), 1.0)
    assert [rate(0), rate(1), rate(1, 0.5), rate(2)] == pytest.approx([0.0, 0.5, 0.75, 1.0])
    assert rate(6) == pytest.approx(0.55) and rate(10) == rate(12) == pytest.approx(0.1)
    with pytest.raises(UserError, match="min_lr: is -1"):
        merge(SchedulerKwargs, {"min_lr": -1}, "scheduler")


def test_layer_decay_counts_blocks_from_fine_to_coarse():
    """Blocks of all scales are numbered through; embeddings, norms and head have the whole rate."""
    keys = {"NAME": "Point_M2AE_ModelNet40", "encoder_dims": [12, 24, 48], "encoder_depths": [1, 2, 1], "num_heads": 3}
    model = build_model(keys)
    config = OptimizerConfig(OptimizerKwargs(lr=1.0, weight_decay=0.05), layer_decay=0.5)
    scales = {
        id(p): group["lr_scale"] for group in build_optimizer(model, config).param_groups for p in group["params"]
    }
    blocks = ["0.blocks.0", "1.blocks.0", "1.blocks.1", "2.blocks.0"]
    for name, parameter in model.named_parameters():
        place = next((n for n, block in enumerate(blocks) if f"encoder_blocks.{block}." in name), len(blocks) - 1)
        assert scales[id(parameter)] == 0.5 ** (len(blocks) - 1 - place), name
    assert len(scales) == len(list(model.parameters()))
    with pytest.raises(UserError, match="Linear has no transformer blocks"):
        build_optimizer(torch.nn.Linear(2, 2), config)
    with pytest.raises(UserError, match=r"layer_decay: is 1\.5"):
        merge(OptimizerConfig, {"kwargs": {"lr": 1.0}, "layer_decay": 1.5}, "optimizer")


def test_rate_of_the_encoder():
    """With `encoder_lr` the encoder is a group before the rest, whose peak that is; both ends of the curve are those of the rest."""
    keys = {"trans_dim": 24, "encoder_dims": 24, "depth": 1, "num_heads": 2, "embed_widths": [8, 8, 8]}
    model = build_model({"NAME": "PointJepaClassification", **keys})
    config = OptimizerConfig(OptimizerKwargs(lr=1e-3, weight_decay=0.05), decay_all=True, encoder_lr=1e-4)
    encoder, rest = build_optimizer(model, config).param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in model.encoder.parameters()}
    assert len(encoder["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert encoder["weight_decay"] == rest["weight_decay"] == 0.05
    schedule = SchedulerConfig("WarmupCosine", SchedulerKwargs(epochs=10, initial_epochs=2, start_lr=1e-6), lag=0)
    rates = [
        [
            group_rate(
                group, build_schedule(schedule, 1e-3)(e), lambda scale, e=e: build_schedule(schedule, 1e-3 * scale)(e)
            )
            for group in (encoder, rest)
        ]
        for e in (0, 1)
    ]
    assert rates == [[1e-6, 1e-6], [pytest.approx(1e-4), 1e-3]]
    with pytest.raises(UserError, match="Linear has no encoder of that name; leave it out"):
        build_optimizer(torch.nn.Linear(2, 2), config)
    for bad, message in (({"encoder_lr": 0.0}, "must be above 0"), ({"encoder_lr": 1.0}, "goes with decay_all: true")):
        with pytest.raises(UserError, match=message):
            merge(OptimizerConfig, {"kwargs": {"lr": 1.0}, "decay_all": bad["encoder_lr"] == 0.0, **bad}, "optimizer")


def test_head_scale_raises_the_peak_of_the_head_alone():
    """Class token, its position and the head are the first group, all of it with decay; both ends of the curve stay where they are."""
    keys = {"trans_dim": 24, "encoder_dims": 24, "depth": 1, "num_heads": 2, "embed_widths": [8, 8, 8]}
    model = build_model({"NAME": "PCP_MAE_Classifier", **keys})
    config = OptimizerConfig(OptimizerKwargs(lr=1e-3, weight_decay=0.05), head_scale=10)
    head, spared, decayed = build_optimizer(model, config).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in head["params"]} == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert [group["weight_decay"] for group in (head, spared, decayed)] == [0.05, 0.0, 0.05]
    assert sum(len(group["params"]) for group in (head, spared, decayed)) == len(names)
    cosine = SchedulerConfig("CosLR", SchedulerKwargs(epochs=10, initial_epochs=2), lag=0)
    rates = [
        group_rate(head, build_schedule(cosine, 1e-3)(e), lambda scale, e=e: build_schedule(cosine, 1e-3 * scale)(e))
        for e in (0, 6, 10)
    ]
    assert rates[0] == rates[2] == LOWEST_RATE and rates[1] == build_schedule(cosine, 1e-2)(6)
    assert group_rate({"lr_scale": 0.5}, 2.0, lambda scale: 0.0) == 1.0
    with pytest.raises(UserError, match="PCPMAE has no class token and head; leave it out"):
        build_optimizer(build_model({"NAME": "PCP_MAE", "transformer_config": keys}), config)
    for bad, message in (
        ({"head_scale": 0}, "must be above 0"),
        ({"head_scale": 2, "layer_decay": 0.5}, "give one of them"),
    ):
        with pytest.raises(UserError, match=message):
            merge(OptimizerConfig, {"kwargs": {"lr": 1.0}, **bad}, "optimizer")
