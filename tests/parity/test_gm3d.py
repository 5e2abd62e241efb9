"""GM3D on Point-MAE and its classifiers against numbers of the original networks (`data/gm3d`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS
from models import MODELS, build_model, load_weights
from models.gm3d import GuidanceConfig, Targets
from models.losses import RankingLoss, feature_distance, patch_losses, regression_loss
from models.masking import guided_mask
from models.teachers import EmaTeacher, FrozenTeacher
from tests.parity.fill import fill_state_dict
from tests.parity.test_point_mae import check_gradients, optimizer_for
from tools.optim import build_optimizer, build_schedule
from utils.config.load import load_config
from utils.config.schema import OptimizerConfig, OptimizerKwargs, SchedulerConfig, SchedulerKwargs

DATA = Path(__file__).parent / "data" / "gm3d"
EPOCHS = 400
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def read(name):
    return dict(np.load(DATA / f"{name}.npz"))


def filled(**keys):
    model = build_model({"NAME": "GM3D", **keys}).eval()
    fill_state_dict(model.state_dict())
    return model


def filled_teacher():
    model = build_model({"NAME": "Point_MAE"})
    fill_state_dict({f"teacher.{key}": value for key, value in model.state_dict().items()})
    return FrozenTeacher(model)


def targets_for(model, pyramid, *, epoch, teacher=None):
    guidance = model.config.guidance
    with torch.no_grad():
        scores = model.complexity(pyramid)
    guided = guidance.guided_count(model.masked_count, epoch, EPOCHS)
    complete = None if teacher is None else teacher.complete(pyramid)
    return Targets(guidance.loss_weights(epoch), guided, scores, teacher, complete)


def check_masks(masks, scores, guided):
    """The guided patches are hidden, 39 are hidden in all."""
    for masked, row, count in zip(masks, scores, guided, strict=True):
        assert (masked.sum(1) == 39).all()
        assert masked.gather(1, row.argsort(dim=1, descending=True)[:, : int(count)]).all()


@pytest.mark.parametrize("weights", ["early", "late"])
@pytest.mark.parametrize("mode", ["feature", "usual"])
def test_pretraining_forward_and_backward(mode, weights):
    """Predicted complexity, features, both decodings of the teacher, losses and gradients on a stored mask."""
    ref = read(f"pretrain_{mode}")
    model = filled(guidance={"mode": mode})
    teacher = filled_teacher() if mode == "feature" else None
    stages = {}
    model.MAE_decoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(features=output))
    points = torch.from_numpy(ref["pts"])
    pyramid = model.group(points)
    np.testing.assert_array_equal(pyramid.centers[0].numpy(), ref["center"])

    targets = targets_for(model, pyramid, epoch=0 if weights == "early" else 200, teacher=teacher)
    np.testing.assert_allclose(targets.scores.numpy(), ref["ema_loss_pred_allvisible"], **CLOSE)
    masked = torch.from_numpy(ref["masks"][int(ref["mask_used_index"])]).bool()
    out = model(points, masked, pyramid=pyramid, targets=targets)
    np.testing.assert_allclose(out["complexity"].detach().numpy(), ref["loss_pred_masked"], **CLOSE)
    if mode == "feature":
        complete = targets.complete
        np.testing.assert_allclose(complete.features[:, ::8].numpy(), ref["teacher_feature_head"], **CLOSE)
        np.testing.assert_allclose(complete.patches[:, ::4].flatten(2), ref["teacher_points_complete"], **CLOSE)
        rebuilt = out["rebuilt"].view(2, 39, 96)[:, ::3]
        np.testing.assert_allclose(rebuilt.numpy(), ref["teacher_points_from_student"], **CLOSE)
        features = stages["features"].detach()[:, ::3].numpy()
        np.testing.assert_allclose(features, ref["student_features_masked"], **CLOSE)
        assert out["loss_feature"].item() == pytest.approx(float(ref["loss_mse"]), rel=1e-5)
    else:
        np.testing.assert_allclose(out["rebuilt"].detach().view(2, 39, 96).numpy(), ref["rebuild"], **CLOSE)
        assert "loss_feature" not in out and float(ref["loss_mse"]) == 0
    assert out["loss_chamfer"].item() == pytest.approx(float(ref["loss_chamfer"]), rel=1e-5)
    assert out["loss_ranking"].item() == pytest.approx(float(ref["loss_learn_relative"]), rel=1e-5)
    assert out["loss"].item() == pytest.approx(float(ref[f"{weights}/total_loss"]), rel=1e-5)

    out["loss"].backward()
    prefix = f"{weights}/"
    check_gradients(model, {key.removeprefix(prefix): value for key, value in ref.items() if key.startswith(prefix)})


@pytest.mark.parametrize("mode", ["feature", "usual"])
def test_tokens_of_the_complete_cloud_and_the_other_ranking_loss(mode):
    ref = read(f"pretrain_{mode}")
    model = filled(guidance={"mode": mode, "relative": False})
    points = torch.from_numpy(ref["pts"])
    pyramid = model.group(points)
    with torch.no_grad():
        tokens = model.patch_tokens(points)
        np.testing.assert_allclose(tokens[:, :8].numpy(), ref["ema_features_head"], **CLOSE)
        np.testing.assert_allclose(model.encode(points), tokens.mean(1) + tokens.amax(1), rtol=1e-6)
        masked = torch.from_numpy(ref["masks"][int(ref["mask_used_index"])]).bool()
        teacher = filled_teacher() if mode == "feature" else None
        out = model(points, masked, targets=targets_for(model, pyramid, epoch=0, teacher=teacher))
    assert out["loss_ranking"].item() == pytest.approx(float(ref["loss_learn_absolute"]), rel=1e-5)
    difficulty = torch.from_numpy(ref["complexity_target"])
    prediction = torch.from_numpy(ref["loss_pred_masked"])
    assert RankingLoss()(prediction, difficulty).item() == pytest.approx(float(ref["loss_learn_relative"]), rel=1e-6)


def test_losses_on_plain_arrays():
    """Equal targets make no pair."""
    ref = {key: torch.from_numpy(np.asarray(value)) for key, value in read("losses_and_masks").items()}
    relative = RankingLoss()(ref["rank_pred"], ref["rank_target"])
    absolute = regression_loss(ref["rank_pred"], ref["rank_target"])
    assert relative.item() == pytest.approx(ref["rank_loss_relative"].item(), rel=1e-6)
    assert absolute.item() == pytest.approx(ref["rank_loss_absolute"].item(), rel=1e-6)
    masked = ref["distill_mask"].bool()
    features = feature_distance(ref["distill_pred"], ref["distill_target"][masked].view(1, 39, -1))
    a, b = ref["teacher_pts"][masked].view(-1, 32, 3), ref["student_pts"].view(-1, 32, 3)
    chamfer = patch_losses(b, a).view(1, 39)
    assert features.mean().item() == pytest.approx(ref["distill_mse"].item(), rel=1e-6)
    assert chamfer.mean().item() == pytest.approx(ref["distill_chamfer"].item(), rel=1e-6)
    np.testing.assert_allclose((features + chamfer).numpy(), ref["distill_matrix"].numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["pretrain_feature", "pretrain_usual", "losses_and_masks"])
def test_masks(name):
    """Stored masks and ours hide what is guided, 39 patches in all; the others change with the generator."""
    ref = read(name)
    scores = torch.from_numpy(ref["mask_scores" if name == "losses_and_masks" else "ema_loss_pred_allvisible"])
    guidance = GuidanceConfig(mode="usual" if name == "pretrain_usual" else "feature")
    epochs = ref["mask_epochs"].tolist()
    guided = [guidance.guided_count(39, epoch, EPOCHS) for epoch in epochs]
    stored = torch.from_numpy(ref["masks"]).bool()
    check_masks(stored, [scores] * len(epochs), guided)
    ours = [guided_mask(scores, 39, count, generator=torch.Generator().manual_seed(0)) for count in guided]
    check_masks(ours, [scores] * len(epochs), guided)
    if "mask_after200_epoch150" in ref:
        half = GuidanceConfig(mode="usual", half=True).guided_count(39, 150, EPOCHS)
        assert half == int(39 * 151 / 200 * 0.5) == 14
        check_masks([torch.from_numpy(ref["mask_after200_epoch150"]).bool()], [scores], [half])


def test_schedules():
    """Hidden and guided patches, decay of the average and learning rate, epoch by epoch."""
    ref = read("schedules")
    assert GuidanceConfig().masked_count(64, 0.6) == int(ref["n_masked"]) == 39
    for mode in ("feature", "usual"):
        guided = [GuidanceConfig(mode=mode).guided_count(39, epoch, EPOCHS) for epoch in range(EPOCHS)]
        assert guided == ref[f"guided_count_{mode}"].tolist()
    decay = [GuidanceConfig().decay(epoch) for epoch in range(EPOCHS)]
    np.testing.assert_allclose(decay, ref["ema_decay"], rtol=1e-6)
    kwargs = SchedulerKwargs(epochs=400, initial_epochs=40, min_lr=0.0)
    rate = build_schedule(SchedulerConfig("HalfCosine", kwargs, lag=0, per_step=True), 1e-3)
    np.testing.assert_allclose([rate(epoch) for epoch in range(EPOCHS)], ref["lr_at_epoch_start"], rtol=1e-5, atol=1e-9)


def test_published_learning_rates():
    """The mean rates of the epochs in the public logs, of our recipes."""
    for recipe, log in json.loads((DATA / "log_rates.json").read_text()).items():
        config = load_config(recipe, models=MODELS, datasets=DATASETS)
        rate = build_schedule(config.scheduler, config.optimizer.kwargs.lr)
        steps = log["steps"]
        for epoch, expected in zip(log["epochs"], log["lr"], strict=True):
            ours = sum(rate(epoch, step / steps) for step in range(steps)) / steps
            assert ours == pytest.approx(expected, rel=1e-4, abs=1e-11), (recipe, epoch)


def test_pretraining_steps():
    """Three AdamW steps in training mode, the mask from the average, which follows each step."""
    ref = read("train_steps_feature")
    model = filled(transformer_config={"drop_path_rate": 0.0}).train()
    ema, teacher = EmaTeacher(model), filled_teacher()
    optimizer = optimizer_for(model, float(ref["lr"]), None, betas=[0.9, 0.95], token_rule=False)
    for step in range(3):
        points = torch.from_numpy(ref["pts"][step])
        pyramid = model.group(points)
        with torch.no_grad():
            scores = ema.module.complexity(pyramid)
        np.testing.assert_allclose(scores.numpy(), ref["ema_gc"][step], rtol=1e-4, atol=5e-5)
        masked = torch.from_numpy(ref["mask"][step]).bool()
        guided = model.config.guidance.guided_count(39, int(ref["mask_epoch"]), EPOCHS)
        check_masks([masked], [scores], [guided])
        targets = Targets((13.889, 1000.0), guided, scores, teacher, teacher.complete(pyramid))
        optimizer.zero_grad()
        out = model(points, masked, pyramid=pyramid, targets=targets)
        for name, key in (("loss_feature", "mse"), ("loss_chamfer", "chamfer"), ("loss_ranking", "rank")):
            assert out[name].item() == pytest.approx(float(ref[key][step]), rel=1e-4), (step, name)
        out["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        assert float(norm) == pytest.approx(float(ref["grad_norm"][step]), rel=1e-4)
        optimizer.step()
        ema.update(model, float(ref["ema_decay"]))
    for prefix, module in (("after/", model), ("ema_after/", ema.module)):
        state = module.state_dict()
        for key in (key for key in ref if key.startswith(prefix)):
            name = key.removeprefix(prefix)
            tolerance = 3e-3 if name.endswith("running_mean") else 1e-5
            np.testing.assert_allclose(
                state[name].flatten()[:16].numpy(), ref[key], rtol=0, atol=tolerance, err_msg=name
            )


@pytest.mark.parametrize("mode", ["feature", "usual"])
def test_published_keys(mode):
    """Names, shapes and order are the published ones, and a published checkpoint loads whole."""
    published = json.loads((DATA / f"state_dict_pretrain_{mode}.json").read_text())
    model = build_model({"NAME": "GM3D", "guidance": {"mode": mode}})
    own = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert own == published["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in published["state_dict"]}
    report = load_weights(model, {"state_dict": weights, "epoch": 400, "model": "mae_vit_base_patch16_dec512d8b"})
    assert len(report.used) == len(own) and not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())


def classifier(name, **keys):
    scan = {"num_group": 128, "cls_dim": 15} if name == "finetune_scan_hardest" else {}
    return build_model({"NAME": "GM3D_PointTransformer", **scan, **keys})


CLASSIFIERS = ("finetune_modelnet", "finetune_scan_hardest")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    """Logits and loss on filled weights; names, shapes and order of the parameters."""
    ref, model = read(name), classifier(name).eval()
    fill_state_dict(model.state_dict())
    with torch.no_grad():
        logits = model(torch.from_numpy(ref["pts"]))
    np.testing.assert_allclose(logits.numpy(), ref["logits"], **CLOSE)
    loss = model.loss(logits, torch.from_numpy(ref["label"]).long())
    assert loss.item() == pytest.approx(float(ref["loss_ce"]), rel=1e-5)
    published = json.loads((DATA / f"state_dict_{name}.json").read_text())
    own = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert own == published["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]


def numbered_checkpoint():
    """A published pre-training checkpoint in which every tensor holds its own number; and the number of each key."""
    published = json.loads((DATA / "state_dict_pretrain_feature.json").read_text())["state_dict"]
    numbers = {key: float(index + 1) for index, (key, _, _) in enumerate(published)}
    weights = {key: torch.full(shape, numbers[key]) for key, shape, _ in published}
    return {"state_dict": {f"module.{key}": value for key, value in weights.items()}}, numbers


@pytest.mark.parametrize("legacy", [False, ["norm_overwrite"]])
def test_which_norm_reaches_the_classifier(legacy):
    """The trained one; with `norm_overwrite` the one that was never trained, as in the published program, key by key."""
    source = json.loads((DATA / "finetune_key_source.json").read_text())
    checkpoint, numbers = numbered_checkpoint()
    model = classifier("finetune_modelnet", legacy=legacy)
    report = load_weights(model, checkpoint)
    assert set(report.used) == set(source)
    assert {key.split(".")[0] for key in report.missing} == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert not report.unexpected
    state = model.state_dict()
    for key in report.used:
        origin = source[key]
        if not legacy and key.startswith("norm_p."):
            assert origin == key  # as published: from the top level
            origin = f"MAE_encoder.{key}"
        assert (state[key] == numbers[origin]).all(), key
    assert ("MAE_encoder.norm_p.weight" if legacy else "norm_p.weight") in report.ignored


def test_the_classifier_loads_itself():
    """A fine-tuned checkpoint has one `norm_p`, and it is taken."""
    model, other = classifier("finetune_modelnet"), classifier("finetune_modelnet")
    with torch.no_grad():
        model.norm_p.weight.fill_(3.0)
    report = load_weights(other, {"base_model": model.state_dict()})
    assert not (report.missing or report.ignored) and (other.norm_p.weight == 3).all()


def test_layer_decay():
    """The published groups: which tensors, their factor of the learning rate and their weight decay."""
    published = json.loads((DATA / "finetune_param_groups.json").read_text())
    model = classifier("finetune_scan_hardest")
    config = OptimizerConfig(OptimizerKwargs(lr=1.0, weight_decay=0.05), token_rule=False, layer_decay=0.75)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    ours = {(g["lr_scale"], g["weight_decay"]): sorted(names[id(p)] for p in g["params"]) for g in groups}
    assert ours == {(g["lr_scale"], g["weight_decay"]): sorted(g["params"]) for g in published}


@pytest.mark.parametrize(
    "name, parameters", [("Point_M2AE_ModelNet40", 12830056), ("Point_M2AE_ScanObjectNN", 12921935)]
)
def test_classifiers_of_the_point_m2ae_variant_have_the_parameters_of_the_public_logs(name, parameters):
    assert sum(p.numel() for p in build_model({"NAME": name}).parameters()) == parameters
