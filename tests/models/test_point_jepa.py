"""Point-JEPA: what it refuses, its switches, its teacher and the watch for collapse; numbers are in `tests/parity`."""

import re

import pytest
import torch

from models import build_model
from models.point_jepa import BlockArea, BlockKeys, draw_blocks
from models.teachers import collapsed, feature_spread
from models.transforms import TransformKeys, transform
from tests.models.test_contract import KEYS

SMALL = {**KEYS["Point_JEPA"], "NAME": "Point_JEPA"}


def build(**keys):
    torch.manual_seed(0)
    return build_model({**SMALL, **keys})


def clouds(batch=3):
    return torch.randn(batch, 100, 3, generator=torch.Generator().manual_seed(1)) * 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"target_sample_ratio": [0.2, 0.3]},
            "4 target blocks of up to 4 may cover all 16 groups and leave no context",
        ),
        ({"target_sample_ratio": [0.01, 0.2]}, "0.01 of 16 groups is less than one"),
        ({"target_sample_ratio": [0.2, 0.15]}, "must be two numbers, the lower first"),
        ({"context_sample_ratio": [0.0, 0.0]}, "context_sample_ratio.*above 0 and not above 1"),
        ({"context_sample_ratio": [0.4, 1.5]}, "context_sample_ratio.*above 0 and not above 1"),
        ({"num_targets_per_sample": 0}, "num_targets_per_sample: 0 must be at least 1"),
        ({"ema_tau_max": 1.5}, "ema_tau_max: the momentum 1.5 must lie between 0 and 1"),
        ({"ema_tau_min": -0.1}, "ema_tau_min: the momentum -0.1 must lie between 0 and 1"),
        ({"ema_tau_min": 0.9, "ema_tau_max": 0.5}, "ema_tau_min: 0.9 must not be above"),
        ({"num_group": 4}, "0.15 of 4 groups is less than one"),
        ({"num_targets_per_sample": 20}, "20 target blocks of up to 3 may cover all 16 groups"),
        ({"target_layers": [2]}, r"target_layers: \[2\] must be blocks from 0 to 1"),
        ({"predictor_heads": 5}, "predictor_heads: 5 does not divide predictor_embed_dim 12"),
        ({"loss": "l1"}, "loss: 'l1' is unknown; choose from smooth_l1, mse"),
        ({"train_transformations": ["flip"]}, "'flip' is unknown; choose from subsample"),
        ({"group_radius": -1.0}, "group_radius: -1.0 must be above 0"),
    ],
)
def test_what_is_refused_before_the_first_step(keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


STEPWISE = {"encoder_unfreeze_stepwise": True}
TASK = {**KEYS["PointJepaClassification"], "NAME": "PointJepaClassification", "depth": 4}


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({}, ["0123", "0123", "0123"]),
        ({"encoder_unfreeze_epoch": 1}, ["", "0123", "0123"]),
        ({"encoder_unfreeze_epoch": 1, "encoder_freeze_layers": [0, 1]}, ["", "23", "23"]),
        ({"encoder_unfreeze_epoch": 1, "encoder_unfreeze_layers": [3]}, ["", "3", "3"]),
        (STEPWISE, ["23", "0123", "0123"]),
        ({**STEPWISE, "encoder_unfreeze_stepwise_num_layers": 1, "encoder_unfreeze_epoch": 1, "encoder_freeze_layers": [2]},
         ["", "3", "13"]),
    ],
)  # fmt: skip
def test_blocks_that_train(keys, trained):
    """The norm trains with any of them, all else always; the answer says whether something changed."""
    model = build_model({**TASK, **keys}).train()
    before = "0123"
    for epoch, expected in enumerate(trained):
        assert model.begin_epoch(epoch) == (expected != before)
        found = [
            str(n) for n, block in enumerate(model.encoder.blocks) if all(p.requires_grad for p in block.parameters())
        ]
        part = [n for n, block in enumerate(model.encoder.blocks) if any(p.requires_grad for p in block.parameters())]
        assert "".join(found) == expected and len(part) == len(found)
        assert model.encoder.norm.weight.requires_grad == bool(expected) and model.encoder.training
        assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("encoder."))
        before = expected
    assert (model.data_dependent is None) == (trained[0] == trained[-1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"encoder_unfreeze_epoch": -1}, "encoder_unfreeze_epoch: -1 must be at least 0"),
        ({"encoder_unfreeze_stepwise_num_layers": 0}, "encoder_unfreeze_stepwise_num_layers: 0 must be at least 1"),
        ({"encoder_freeze_layers": [4]}, r"encoder_freeze_layers: \[4\] must be blocks from 0 to 3"),
        ({"encoder_unfreeze_layers": [-1]}, r"encoder_unfreeze_layers: \[-1\] must be blocks"),
        (
            {"encoder_freeze_layers": [0, 1], "encoder_unfreeze_layers": [1]},
            r"\[1\] are in model.encoder_unfreeze_layers too",
        ),
    ],
)
def test_frozen_blocks_that_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model({**TASK, **keys})


def test_blocks_that_are_refused():
    model, points = build(), clouds()
    good = model.draw_mask(model.group(points))
    for blocks, message in (
        (torch.ones(3, 16, dtype=torch.bool), "masked must be blocks"),
        (BlockArea(good.targets, good.context[:0]), "not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            model(points, blocks)
    with pytest.raises(ValueError, match="its teacher is a part of it"):
        model(points, targets=good)


def test_random_context():
    """Context and targets have nothing in common; the published bug mixes them."""
    keys, mixed = BlockKeys(context_sample_method="random"), 0
    for seed in range(20):
        targets, context = draw_blocks(64, keys, generator=seeded(seed))
        assert not set(targets.flatten().tolist()) & set(context.tolist())
        targets, context = draw_blocks(64, keys, faulty_random=True, generator=seeded(seed))
        mixed += bool(set(targets.flatten().tolist()) & set(context.tolist()))
    assert mixed > 15
    assert build(context_sample_method="random", legacy=["random_context_positions"]).legacy


def test_drop_paths_of_the_predictor():
    keys = {"predictor_depth": 3, "predictor_drop_path_rate": 0.2}
    rates = [
        [b.drop_path.rate for b in build(legacy=legacy, **keys).predictor.predictor.blocks] for legacy in (False, True)
    ]
    assert rates[0] == pytest.approx([0.0, 0.1, 0.2]) and rates[1] == [0.2] * 3


def test_starts():
    """Evaluation groups alike each time; training, and `random_starts`, do not."""
    points, model = clouds(), build()
    first = model.group(points).centers[0]
    assert torch.equal(first, model.group(points).centers[0]) and torch.equal(first[:, 0], points[:, 0])
    drawn = model.group(points, generator=seeded(3)).centers[0]
    assert torch.equal(drawn, model.group(points, generator=seeded(3)).centers[0]) and not torch.equal(drawn, first)
    torch.manual_seed(1)
    faulty = build(legacy=["random_starts"])
    assert not torch.equal(faulty.group(points).centers[0], faulty.group(points).centers[0])


def test_predictor_without_places():
    model = build(predictor_add_target_pos=False).eval()
    prediction = model(clouds(), generator=seeded())["prediction"]
    torch.testing.assert_close(prediction[..., :1, :].expand_as(prediction), prediction, atol=1e-5, rtol=1e-4)


def test_transforms_of_single_clouds():
    keys = TransformKeys(transformation_per_cloud=True)
    points = clouds(1).expand(3, -1, -1)
    turned = transform(points, ["rotate"], keys, generator=seeded())
    assert not torch.allclose(turned[0], turned[1])
    torch.testing.assert_close(turned.norm(dim=-1), points.norm(dim=-1))


def test_groups_within_a_radius():
    model, points = build(group_radius=0.4), clouds()
    pyramid = model.group(points)
    assert pyramid.neighborhoods[0].norm(dim=-1).max() <= 1
    assert model(points, pyramid=pyramid, generator=seeded())["loss"].isfinite()


@pytest.mark.parametrize("pooling", ["class", "class,max,mean", "mean", "max"])
def test_poolings(pooling):
    torch.manual_seed(0)
    model = build_model({**KEYS["PointJepaClassification"], "NAME": "PointJepaClassification", "pooling": pooling})
    assert model(clouds()).shape == (3, 4)
    assert ("cls_token" in model.state_dict()) == pooling.startswith("class")


def test_teacher_follows_and_is_saved():
    model, other = build().train(), build()
    assert model.student.training and not model.teacher.ema_model.training
    with torch.no_grad():
        model.student.norm.bias += 1
    assert model.teacher.follow(0.5, 0.5, 10) == 0 and model.teacher.ema_model.norm.bias.mean() == 1
    model.teacher.follow(0.5, 0.5, 10)
    with torch.no_grad():
        model.student.norm.bias += 1
    model.teacher.follow(0.5, 0.5, 10)
    assert model.teacher.ema_model.norm.bias.mean() == 1.5
    other.load_state_dict(model.state_dict())
    assert other.teacher.updates == 3 and other.teacher.ema_model.norm.bias.mean() == 1.5
    other.teacher.follow(0.5, 0.5, 10)
    assert other.teacher.ema_model.norm.bias.mean() == 1.75


def test_spread_and_collapse():
    """Independent channels use all dimensions, a line one; equal tokens spread nowhere."""
    features = torch.randn(4, 500, 8, generator=seeded())
    deviation, rank = feature_spread(features)
    assert deviation.item() == pytest.approx(1, rel=0.05) and rank.item() == pytest.approx(8, rel=0.05)
    line = feature_spread(features[..., :1] * torch.arange(1.0, 9.0))
    assert line.rank.item() == pytest.approx(1, abs=1e-3)
    assert collapsed(deviation.item(), rank.item()) is None
    for spread in (line, feature_spread(torch.ones(4, 5, 8))):
        assert re.search(
            "features of the teacher have collapsed", collapsed(spread.deviation.item(), spread.rank.item())
        )
