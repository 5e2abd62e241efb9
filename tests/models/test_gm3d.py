"""What GM3D promises, on Point-MAE and on Point-M2AE: masks, losses, teachers, and what it refuses."""

import contextlib

import pytest
import torch

from models import build_model, load_weights
from models.gm3d import GuidanceConfig, Targets, carry_up
from models.layers.packing import rows_of
from models.losses import RankingLoss, patch_losses, rank_correlation, regression_loss
from models.masking import back_project, curriculum, guided_mask
from models.teachers import FrozenTeacher, NotingTeacher, load_teacher
from models.weights import method_of
from tests.models.small import SMALL
from tests.steps import fixed_shapes
from utils.errors import UserError

TINY = {
    "trans_dim": 24,
    "encoder_dims": 24,
    "depth": 1,
    "num_heads": 3,
    "embed_widths": [8, 16, 24],
    "decoder_depth": 1,
}
SINGLE = {
    "num_group": 16,
    "group_size": 8,
    "transformer_config": {**TINY, "decoder_num_heads": 3, "drop_path_rate": 0.0},
}
GUIDANCE = {"depth": 1, "width": 32}
BASES = {
    "GM3D": {"NAME": "Point_MAE", **SINGLE},
    "GM3D_Point_M2AE": SMALL,
}
NAMES = tuple(BASES)


def build(name, **guidance):
    torch.manual_seed(0)
    return build_model({**BASES[name], "NAME": name, "guidance": {**GUIDANCE, **guidance}})


def frozen_teacher(name):
    torch.manual_seed(1)
    return FrozenTeacher(build_model(BASES[name]))


def clouds(batch=3, points=128):
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(2))


def targets_for(model, pyramid, teacher=None, *, guided=2, weights=(1.0, 1.0)):
    with torch.no_grad():
        scores = model.complexity(pyramid)
    complete = None if teacher is None else teacher.complete(pyramid)
    return Targets(weights, guided, scores, teacher, complete)


def step(model, teacher=None, **keys):
    points = clouds()
    pyramid = model.group(points)
    targets = targets_for(model, pyramid, teacher, **keys)
    masked = guided_mask(targets.scores, model.masked_count, targets.guided, generator=torch.Generator().manual_seed(0))
    return model(points, masked, pyramid=pyramid, targets=targets)


@pytest.mark.parametrize("mode", ["feature", "usual"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name, mode):
    """What a step returns, and that every parameter that has a gradient to get gets one."""
    model = build(name, mode=mode).train()
    out = step(model, frozen_teacher(name) if mode == "feature" else None)
    parts = {"loss_chamfer", "loss_ranking", *(("loss_feature",) if mode == "feature" else ())}
    assert parts == {key for key in out if key.startswith("loss_")}
    assert out["loss"].item() == pytest.approx(sum(out[part].item() for part in parts), rel=1e-5)
    assert out["log_guided_fraction"].item() == pytest.approx(2 / model.masked_count)
    assert (
        out["complexity"].shape == (3, model.masked_count) and out["masked"].sum(1).tolist() == [model.masked_count] * 3
    )
    assert len(out["rebuilt"]) == len(out["target"]) == len(out["centers"]) == len(out["samples"])
    assert out["rebuilt"].shape[2:] == (3,)
    out["loss"].backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    silent = {
        key.split(".")[0] if name == "GM3D" else key.split(".")[1]
        for key, p in model.named_parameters()
        if not p.requires_grad
    }
    expected = {"GM3D": {"norm_p"}, "GM3D_Point_M2AE": {"h_encoder"}}[name]
    heads = {"GM3D": "increase_dim_just_network_without_feature", "GM3D_Point_M2AE": "rec_head"}
    assert silent == expected | ({heads[name]} if mode == "feature" else set())


@pytest.mark.parametrize("name", NAMES)
def test_without_targets_the_own_head_rebuilds(name):
    """For pictures and evaluation: a random mask, the points of the model's own head, no teacher."""
    model = build(name).eval()
    with torch.no_grad():
        out = model(clouds(), generator=torch.Generator().manual_seed(0))
        again = model(clouds(), out["masked"])
    assert "loss_feature" not in out and "log_guided_fraction" not in out
    expected = patch_losses(out["rebuilt"], out["target"]).mean() + out["loss_ranking"]
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(out["rebuilt"], again["rebuilt"])
    assert model.encode(clouds()).shape == (3, {"GM3D": 24, "GM3D_Point_M2AE": 48}[name])
    with pytest.raises(ValueError, match="give a mask with as many hidden groups as the mask ratio says"):
        model(clouds(), torch.zeros_like(out["masked"]))


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_point_term_of_feature_mode_has_a_gradient_only_when_asked(name, detached):
    """As released it has none; either way its value is the same and the teacher gets no gradient."""
    model, teacher = build(name, detach_chamfer=detached).eval(), frozen_teacher(name)
    out = step(model, teacher)
    assert out["loss_chamfer"].requires_grad is not detached
    out["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    with torch.no_grad():
        assert step(build(name).eval(), teacher)["loss_chamfer"].item() == pytest.approx(out["loss_chamfer"].item())


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_student_has_no_feature_loss(name):
    """The teacher's own features, given back, cost nothing, and decode to its own points."""
    model, teacher = build(name), frozen_teacher(name)
    pyramid = model.group(clouds())
    complete = teacher.complete(pyramid)
    if name == "GM3D":
        rebuilt = teacher.rebuild(complete.features, pyramid.centers[0])
    else:
        rebuilt = teacher.rebuild(complete.features.flatten(0, 1), pyramid.centers[1].flatten(0, 1)).view_as(
            complete.patches
        )
    assert torch.allclose(rebuilt, complete.patches, atol=1e-6)
    assert complete.features.shape[1] == (16 if name == "GM3D" else SMALL["num_groups"][1])


def test_released_count_of_hidden_patches_and_the_other_one():
    """39 of 64 at a ratio of 0.6, where Point-MAE hides 38; `masked_patches` says another number. 52 of 64 at 0.8."""
    assert GuidanceConfig().masked_count(64, 0.6) == 39
    assert GuidanceConfig(masked_patches=38).masked_count(64, 0.6) == 38
    assert GuidanceConfig().masked_count(64, 0.8) == 52
    for keys, count in (({}, 10), ({"masked_patches": 9}, 9)):  # 16 groups: 16 - int(6.4)
        out = build("GM3D", **keys).eval()(clouds())
        assert out["masked"].sum(1).tolist() == [count] * 3


def test_mask_of_the_coarsest_scale_is_carried_down():
    """Point-M2AE's own rule: a finer patch is visible if and only if a visible patch above holds it."""
    model = build("GM3D_Point_M2AE").eval()
    pyramid = model.group(clouds())
    with torch.no_grad():
        out = step(model, frozen_teacher("GM3D_Point_M2AE"))
    scales = back_project(out["masked"], pyramid.idx, SMALL["num_groups"])
    assert out["masked"].sum(1).tolist() == [7] * 3 and torch.equal(out["masked_finest"], scales[0])
    assert len(out["rebuilt"]) == scales[1].sum() and torch.equal(out["samples"], scales[1].nonzero()[:, 0])
    for sample in range(3):
        held = pyramid.idx[2][sample][~out["masked"][sample]].unique()
        assert not scales[1][sample][held].any() and (~scales[1][sample]).sum() == len(held)


def test_losses_of_patches_are_carried_up_to_those_that_hold_them():
    hidden = torch.tensor([[True, True, False, False], [False, True, False, True]])
    exact, every = torch.tensor([1.0, 3.0, 5.0, 9.0]), torch.tensor([1.0, 3.0, 5.0, 9.0, 99, 99, 99, 99])
    idx = torch.tensor([[[0, 1], [1, 2], [2, 3]], [[0, 1], [1, 3], [0, 2]]])
    for values, context in ((exact, contextlib.nullcontext()), (every, fixed_shapes())):
        with context:
            total, known = carry_up(values, rows_of(hidden), hidden, [idx])
        assert known.tolist() == [[True, True, False], [True, True, False]]
        assert total.tolist() == [[2.0, 3.0, 0.0], [5.0, 7.0, 0.0]]


def test_groups_with_the_same_members_are_equally_hard():
    """In any order of the members: in fp32 sums differ by rounding, and the ranking loss would make a pair of such groups."""
    values = torch.rand(200, 8, generator=torch.Generator().manual_seed(0))  # (B, G) of the finer scale, all hidden
    order = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(seed)) for seed in range(6)])
    hidden = torch.ones(200, 8, dtype=torch.bool)
    total, _ = carry_up(values.flatten(), rows_of(hidden), hidden, [order.expand(200, 6, 8)])
    assert torch.equal(total, total[:, :1].expand_as(total))
    torch.testing.assert_close(total[:, 0], values.mean(1))


def test_a_hidden_patch_that_holds_no_hidden_one_is_left_out_of_the_ranking():
    """Its patches are all seen through a visible neighbour, so how hard it is is not known."""
    model = build("GM3D_Point_M2AE", mode="usual", masked_patches=5).eval()
    pyramid = model.group(clouds())
    masked = torch.tensor([[False, True, True, True, False, True, True, False]]).repeat(3, 1)
    pyramid.idx[2][:, 1] = pyramid.idx[2][:, 0]  # hidden group 1 has the members of visible group 0
    out = model(clouds(), masked, pyramid=pyramid)
    out["complexity"].retain_grad()
    out["loss_ranking"].backward()
    assert (out["complexity"].grad[:, 0] == 0).all() and (out["complexity"].grad[:, 1:] != 0).any(1).all()


def test_curriculum():
    guided = [curriculum(epoch, 10, 0.8) for epoch in range(10)]
    assert guided[0] == pytest.approx(0.08) and guided[-1] == pytest.approx(0.8) and guided == sorted(guided)
    half = [curriculum(epoch, 10, 0.5, half=True) for epoch in range(10)]
    assert half[4] == half[9] == 0.5 and half[3] < 0.5


def test_guided_mask_hides_the_hardest_and_draws_the_rest():
    scores = torch.rand(64, 16, generator=torch.Generator().manual_seed(0))
    masked = guided_mask(scores, 10, 4, generator=torch.Generator().manual_seed(1))
    hardest = scores.argsort(dim=1, descending=True)[:, :4]
    assert (masked.sum(1) == 10).all() and masked.gather(1, hardest).all()
    others = masked.scatter(1, hardest, False).float().sum(0) / (64 - 16)
    assert 0.2 < others.mean() < 0.8 and others.min() > 0.2  # every other patch has its turn
    assert torch.equal(masked, guided_mask(scores, 10, 4, generator=torch.Generator().manual_seed(1)))
    ties = guided_mask(torch.zeros(8, 16), 4, 4)
    assert ties[:, :4].all() and not ties[:, 4:].any()


def test_ranking_loss_and_correlation():
    """Right order: a small loss and 1; reversed: a large one and -1; groups that are not valid do not count."""
    target = torch.tensor([[1.0, 2.0, 3.0, 3.0]])
    right, wrong = RankingLoss()(10 * target, target), RankingLoss()(-10 * target, target)
    assert (
        right < 1e-3 and wrong > 9 and rank_correlation(target, target) == 1 and rank_correlation(-target, target) == -1
    )
    assert torch.isfinite(RankingLoss()(1e4 * -target, target))
    valid = torch.tensor([[True, True, True, False]])
    spoiled = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    assert rank_correlation(spoiled, target, valid) == 1 and rank_correlation(spoiled, target) < 1
    assert RankingLoss()(10 * spoiled, target, valid) < 1e-3
    assert RankingLoss()(target, torch.ones(1, 4)) == 0
    whole = regression_loss(torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0, 2.0]]))
    part = regression_loss(
        torch.tensor([[1.0, -1.0, 7.0]]), torch.tensor([[4.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
    )
    assert whole.item() == pytest.approx((1 - 0.5**0.5) ** 2, rel=1e-4) and part.item() == pytest.approx(whole.item())


def test_other_settings():
    """One token for both decoders, and regression of the difficulty in place of its order."""
    shared = build("GM3D", mode="usual", shared_mask_token=True).train()
    step(shared)["loss"].backward()
    assert shared.mask_token_loss_pred.grad is None and not shared.mask_token_loss_pred.requires_grad
    for name in NAMES:
        assert step(build(name, mode="usual", relative=False).eval())["loss_ranking"].isfinite()


def test_weights_of_the_losses_and_decay_change_with_the_epoch():
    guidance = GuidanceConfig()
    assert [guidance.loss_weights(epoch) for epoch in (0, 14, 15)] == [(1.0, 1.0), (1.0, 1.0), (13.889, 1000.0)]
    assert [guidance.decay(epoch) for epoch in (0, 50, 100, 399)] == pytest.approx([0.999, 0.99945, 0.9999, 0.9999])
    late = step(build("GM3D").eval(), frozen_teacher("GM3D"), weights=(13.889, 1000.0))
    expected = 13.889 * late["loss_feature"] + 1000 * late["loss_chamfer"] + late["loss_ranking"]
    assert late["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_average_of_a_model():
    """Parameters and statistics follow, counters are copied, and nothing else of the model moves."""
    model = build("GM3D", mode="usual").train()
    ema = NotingTeacher(model)
    assert not any(module.training for module in ema.train().modules())
    before = {key: value.clone() for key, value in ema.module.state_dict().items()}
    step(model)["loss"].backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    ema.update(model, 0.75)
    for key, value in model.state_dict().items():
        expected = 0.75 * before[key] + 0.25 * value if value.is_floating_point() else value
        assert torch.allclose(ema.module.state_dict()[key], expected, atol=1e-6), key
    ema.notes["map 0"] = torch.arange(3.0)
    other = NotingTeacher(model)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.notes["map 0"], ema.notes["map 0"])


def test_checkpoints_fit_their_classifiers():
    """The encoder moves over, under the names that the classifier of each base method has."""
    encoder = {key: value for key, value in TINY.items() if key != "decoder_depth"}
    single = {"NAME": "GM3D_PointTransformer", "num_group": 16, "group_size": 8, **encoder}
    multi = {key: value for key, value in SMALL.items() if not key.startswith("decoder")}
    cases = {
        "GM3D": ("gm3d", single),
        "GM3D_Point_M2AE": ("gm3d-point-m2ae", {**multi, "NAME": "Point_M2AE_ModelNet40"}),
    }
    for name, (method, keys) in cases.items():
        pretraining = build(name)
        with torch.no_grad():
            for parameter in pretraining.parameters():
                parameter.fill_(0.5)
        checkpoint = {"base_model": pretraining.state_dict()}
        assert method_of(checkpoint) == method
        classifier = build_model({**keys, "cls_dim": 4})
        report = load_weights(classifier, checkpoint)
        moved = [key for key, _ in classifier.named_parameters() if key in report.used]
        assert not report.unexpected and all((classifier.state_dict()[key] == 0.5).all() for key in moved)
        assert {key.split(".")[0] for key in report.missing} <= {"cls_token", "cls_pos", "norm", "cls_head_finetune"}
        assert len(moved) > 20 and classifier(clouds()).shape == (3, 4)
        if name == "GM3D_Point_M2AE":  # a checkpoint of another method does not
            with pytest.raises(UserError, match="is a checkpoint of gm3d"):
                load_weights(classifier, {"base_model": build("GM3D").state_dict()})


def test_checkpoints_fit_the_segmenters_of_their_base_methods():
    """Released part segmentation is Point-MAE's model; its norm is the trained one of a GM3D checkpoint."""
    encoder = {key: value for key, value in TINY.items() if key != "decoder_depth"}
    single = {"NAME": "Point_MAE_SEG", "num_group": 16, "group_size": 8, "taps": [0], **encoder}
    multi = {**{key: value for key, value in SMALL.items() if not key.startswith("decoder")}, "NAME": "Point_M2AE_SEG"}
    for name, keys in (("GM3D", single), ("GM3D_Point_M2AE", multi)):
        pretraining = build(name)
        with torch.no_grad():
            for key, parameter in pretraining.named_parameters():
                parameter.fill_(-1.0 if key.startswith("norm_p.") else 0.5)
        segmenter = build_model(
            {**keys, "num_parts": 5, "num_categories": 2, "prop_widths": [16, 8], "head_widths": [8]}
        )
        report = load_weights(segmenter, {"base_model": pretraining.state_dict()})
        assert not report.unexpected and all((parameter == 0.5).all() for parameter in segmenter.encoder_parameters())


def test_teacher_from_a_checkpoint(tmp_path):
    """Ours with its configuration, a published one without; what is missing or does not fit is refused before anything runs."""
    student = build("GM3D")
    base = student.config.base()
    plain = build_model(base)
    path = tmp_path / "teacher.pth"
    torch.save({"base_model": plain.state_dict()}, path)
    teacher = load_teacher(str(path), base)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in teacher.model.state_dict().items())
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())
    load_teacher(str(path), base, sha256=teacher.sha256)

    with pytest.raises(UserError, match="is not the teacher that this run began with"):
        load_teacher(str(path), base, sha256="0" * 64)
    with pytest.raises(
        UserError, match=r"model\.guidance\.teacher: is missing; feature mode distils a pre-trained Point_MAE"
    ):
        load_teacher(None, base)
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        load_teacher(str(tmp_path / "nowhere.pth"), base)
    torch.save({"base_model": build_model(SMALL).state_dict()}, path)
    with pytest.raises(UserError, match="is a checkpoint of point-m2ae; give one of point-mae"):
        load_teacher(str(path), base)
    keys = {**BASES["GM3D"], "group_size": 4}
    torch.save({"base_model": build_model(keys).state_dict(), "config": {"model": keys}}, path)
    with pytest.raises(UserError, match="was trained with group_size 4, the student has 8"):
        load_teacher(str(path), base)
    wide = {**BASES["GM3D"], "transformer_config": {**BASES["GM3D"]["transformer_config"], "decoder_depth": 2}}
    torch.save({"base_model": build_model(BASES["GM3D"]).state_dict(), "config": {"model": wide}}, path)
    with pytest.raises(UserError, match=r"lacks .* tensors"):
        load_teacher(str(path), base)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"guidance": {"fraction": 1.5}}, "fraction: 1.5 must lie between 0 and 1"),
        ({"guidance": {"fraction": -0.1}}, "fraction: -0.1 must lie between 0 and 1"),
        ({"guidance": {"ema_decay": [0.9, 1.1]}}, "ema_decay: .* must lie between 0 and 1"),
        ({"guidance": {"ema_decay": [0.9]}}, "ema_decay: .* must be two numbers"),
        ({"guidance": {"weights": [1.0, 2.0, 3.0]}}, "weights: .* must be two numbers"),
        ({"guidance": {"epochs": 0}}, "epochs: 0 must be at least 1"),
        ({"guidance": {"masked_patches": 16}}, "16 of 16 patches would be hidden"),
        ({"guidance": {"masked_patches": 0}}, "0 of 16 patches would be hidden"),
        ({"guidance": {"fraction": 0.05}}, "0.05 of 10 hidden patches is less than one"),
        ({"num_group": 1}, "1 of 1 patches would be hidden"),
        ({"transformer_config": {**SINGLE["transformer_config"], "mask_ratio": 1.2}}, "mask_ratio: 1.2 must lie between 0 and 1"),
        ({"transformer_config": {**SINGLE["transformer_config"], "mask_type": "block"}}, "mask_type: GM3D chooses patches"),
        ({"guidance": {"mode": "clip"}}, "mode"),
    ],
)  # fmt: skip
def test_bad_keys(keys, message):
    with pytest.raises(UserError, match=message):
        build_model({**BASES["GM3D"], "NAME": "GM3D", **keys})


def test_a_scale_without_patches_to_guide():
    keys = {**SMALL, "NAME": "GM3D_Point_M2AE"}
    with pytest.raises(UserError, match="1 of 1 patches would be hidden on the scale that is guided"):
        build_model({**keys, "num_groups": [32, 16, 1], "group_sizes": [8, 4, 1]})
    with pytest.raises(UserError, match=r"mask_ratio: -0\.2 must lie between 0 and 1"):
        build_model({**keys, "mask_ratio": -0.2})
    assert build_model({**keys, "guidance": {"fraction": 0.0, **GUIDANCE}}).config.guidance.guided_count(7, 5, 6) == 0
