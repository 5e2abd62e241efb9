"""3DETR and 3DETR-m against numbers of the original program (`data/detection`, weights from `fill.py`).

Tolerances are those that the reference states; rows of `match_gt` are the last decoder layer, then the others.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.scannet import CLASSES
from datasets.scenes import centered_colors, take, whole
from datasets.scenes import targets as targets_of
from detection.detections import Rules, detections, kept_boxes
from detection.metrics import SceneResult, average_precision, box_iou
from extensions import ball_query, fps
from models import build_model, load_weights
from models.detection.boxes import box_corners, generalized_iou, normalize
from models.detection.layers import FourierEmbedding
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data" / "detection"
SMALL = {"preenc_npoints": 256, "nqueries": 48}
NAMES = {"3detr": "3DETR", "3detr_m": "3DETR_M"}
FEATURES, BOXES = 2e-4, 5e-5


def reference(name):
    return dict(np.load(DATA / f"{name}.npz"))


def filled(kind, *, spread=4.0, **keys):
    model = build_model({"NAME": NAMES[kind], **keys}).eval()
    weights = fill_state_dict(model.state_dict())
    for key, value in weights.items():
        if key == "pos_embedding.gauss_B":
            value.mul_(128**0.5)
        elif key.endswith("in_proj_weight") or (key.startswith("mlp_heads.") and key.endswith("layers.8.weight")):
            value.mul_(spread)
    return model


def targets(ref, rows=slice(None)):
    """Return the targets of a file as the criterion takes them."""
    counts = torch.from_numpy(ref["n_gt"][rows])
    columns = ref["gt_box_centers"].shape[1]
    found = {key: torch.from_numpy(value[rows]) for key, value in ref.items() if key.startswith("gt_")}
    zeros = torch.zeros(len(counts), columns)
    return found | {
        "gt_box_present": (torch.arange(columns) < counts[:, None]).float(),
        "gt_box_angles": zeros,
        "gt_angle_class_label": zeros.long(),
        "gt_angle_residual_label": zeros,
    }


def close(found, expected, atol, name=""):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=atol, err_msg=name)


def watched(model):
    """Run-time outputs of the modules that the reference names."""
    found = {}
    modules = {
        "preenc_feat": model.pre_encoder,
        "enc_feat": model.encoder,
        "memory": model.encoder_to_decoder_projection,
        "query_embed": model.query_projection,
        "dec_out": model.decoder,
        **{f"enc_layer{k}": layer for k, layer in enumerate(model.encoder.layers)},
        **{f"head_{name}": head for name, head in model.mlp_heads.items()},
    }
    if hasattr(model.encoder, "interim_downsampling"):
        modules["interim_feat"] = model.encoder.interim_downsampling
    for name, module in modules.items():
        module.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output}))
    positions = []
    model.pos_embedding.register_forward_hook(lambda _, inputs, output: positions.append(output))
    return found, positions


def check_features(found, positions, ref, step):
    """Compare tokens: every `step`-th, and every eighth channel."""
    found = {**found, "enc_pos": positions[0], "query_pos": positions[1]}
    suffix = f"_t{step}c8"
    for key in (key for key in ref if key.endswith(suffix)):
        value = found[key.removesuffix(suffix)]
        value = value.transpose(0, 1) if key.startswith("dec_out") else value
        close(value[..., ::step, ::8], ref[key], FEATURES, key)


def check_outputs(found, out, ref):
    """Compare raw heads and what is decoded from them, as far as the file holds them."""
    for key in ref:
        name, _, step = key.partition("_q")
        step = int(step or 1)
        if key.startswith("head_"):
            raw = found[name.removesuffix("_aux")].transpose(0, 1)  # layers first
            close((raw[:-1] if name.endswith("_aux") else raw[-1])[..., ::step, :], ref[key], FEATURES, key)
        elif key.startswith("out_"):
            value = out["outputs"][name.removeprefix("out_")]
            close(value[:, ::step], ref[key], BOXES, key)


def check_losses(model, out, ref, rows=slice(None)):
    """Compare costs, matching and losses; returns the total."""
    layers, wanted = [out["outputs"], *out["aux_outputs"]], targets(ref, rows)
    counts = wanted["gt_box_present"].sum(1).long()
    criterion = model.criterion
    stacked = {key: torch.stack([outputs[key] for outputs in layers]) for key in layers[0]}
    gious = criterion.gious(stacked["box_corners"], wanted, counts)
    costs = criterion.costs(stacked, gious, wanted)
    step = 4 if "gious_q4" in ref else 1
    suffix = "_q4" if step == 4 else ""
    close(gious[0, :, ::step], ref[f"gious{suffix}"], BOXES, "gious")
    cost, real = costs[0, :, ::step].numpy(), ~np.isnan(ref[f"cost{suffix}"])
    np.testing.assert_allclose(cost[real], ref[f"cost{suffix}"][real], rtol=0, atol=BOXES)
    np.testing.assert_array_equal(criterion.match(stacked, gious, wanted, counts).numpy(), ref["match_gt"])
    losses = model.loss(out, wanted)
    for name, value in zip(ref["loss_names"], ref["loss_values"], strict=True):
        assert losses[str(name)].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert losses["loss"].item() == pytest.approx(float(ref["loss_total"]), rel=1e-5)
    return losses["loss"]


def check_gradients(model, ref):
    total = torch.nn.utils.get_total_norm([p.grad.double() for p in model.parameters()])
    assert total.item() == pytest.approx(float(ref["grad_norm_total"]), rel=2e-3)
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}
    assert set(gradients) == set(map(str, ref["grad_names"]))
    for name, norm, head in zip(ref["grad_names"], ref["grad_norms"], ref["grad_first8"], strict=True):
        grad = gradients[str(name)]
        assert grad.norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-3), name
        first = grad.flatten()[:8].numpy()
        np.testing.assert_allclose(first, head[: len(first)], rtol=0, atol=2e-3 * max(norm, 1e-3), err_msg=str(name))
    zero = [name for name, grad in gradients.items() if not grad.any()]
    assert set(zero) == {name for name in gradients if "angle_cls_head" in name} | {"decoder.layers.0.norm1.weight"}


@pytest.mark.parametrize("kind", NAMES)
def test_key_lists(kind):
    """Names, order, shapes and types of the public checkpoints; one of them loads whole."""
    published = json.loads((DATA / f"state_dict_{kind}.json").read_text())
    with torch.device("meta"):
        model = build_model({"NAME": NAMES[kind]})
    own = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    assert own == published["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == published["parameters"]
    for name, size in published["parameters_by_module"].items():
        assert sum(p.numel() for p in getattr(model, name).parameters()) == size, name
    model = build_model({"NAME": NAMES[kind]})
    weights = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in published["state_dict"]}
    report = load_weights(model, {"model": weights, "epoch": 1079, "best_val_metrics": {}})
    assert len(report.used) == len(weights) and not (report.missing or report.unexpected or report.ignored)


@pytest.mark.parametrize("kind", NAMES)
def test_small_forward_and_backward(kind):
    ref = reference(f"forward_small_{kind}")
    points = torch.from_numpy(reference("scenes_small")["points"])
    model = filled(kind, **SMALL)
    found, positions = watched(model)
    groups = model.group(points)
    for level, name in enumerate(
        ["preenc_inds", "interim_inds", "query_inds"] if kind == "3detr_m" else ["preenc_inds", "query_inds"]
    ):
        np.testing.assert_array_equal(groups.chosen[level].numpy(), ref[name], err_msg=name)
    close(groups.centers[-1], ref["enc_xyz"], 0)
    out = model(points, groups=groups)
    check_features(found, positions, ref, 8)
    check_outputs(found, out, ref)
    check_losses(model, out, ref).backward()
    check_gradients(model, ref)
    with torch.no_grad():
        alone = model(points[1:2])
        losses = model.loss(alone, targets(ref, slice(1, 2)))
    for name, value in zip(ref["empty_loss_names"], ref["loss_empty_values"], strict=True):
        assert losses[str(name)].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert losses["loss"].item() == pytest.approx(float(ref["loss_empty_total"]), rel=1e-5)


def test_published_size():
    """One scene of 40,000 points: indices, tokens, heads, boxes, matching, losses; gradients as well."""
    ref = reference("forward_full_3detr_m")
    model, points = filled("3detr_m"), torch.from_numpy(ref["points"])
    found, positions = watched(model)
    groups = model.group(points)
    for level, name in enumerate(["preenc_inds", "interim_inds", "query_inds"]):
        np.testing.assert_array_equal(groups.chosen[level].numpy(), ref[name], err_msg=name)
    out = model(points, groups=groups)
    check_features(found, positions, ref, 32)
    check_outputs(found, out, ref)
    check_losses(model, out, ref).backward()
    check_gradients(model, ref)


@pytest.mark.parametrize("kind", NAMES)
def test_three_steps(kind):
    """Training mode without dropout: losses, gradient norm, batch statistics and weights after the first step."""
    ref = reference("train_steps")
    small = reference(f"forward_small_{kind}")
    points = torch.from_numpy(reference("scenes_small")["points"])
    model = filled(kind, spread=1.0, **SMALL, enc_dropout=0.0, dec_dropout=0.0, mlp_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step, (rate, tolerance) in enumerate(zip(ref[f"lr_{kind}"], (2e-5, 2e-3, 2e-2), strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        loss = model.loss(model(points), targets(small))["loss"]
        assert loss.item() == pytest.approx(ref[f"loss_{kind}"][step], rel=tolerance)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        if step == 0:
            assert norm.item() == pytest.approx(ref[f"grad_norm_{kind}"][0], rel=1e-2)
            check_first_step(model.state_dict(), ref, kind)


def check_first_step(weights, ref, kind):
    off = []
    for key, value in ref.items():
        start, _, name = key.partition("/")
        if start == f"bn1_{kind}":
            np.testing.assert_allclose(weights[name].flatten()[:32].numpy(), value, rtol=1e-3, atol=1e-7, err_msg=name)
        elif start == f"after1_{kind}":
            error = np.abs(weights[name].flatten()[: len(value)].numpy() - value)
            if name == "mlp_heads.angle_cls_head.layers.0.weight":
                assert error.max() < 1e-6  # no gradient: it has only decayed
            assert error.max() < 2 * float(ref[f"lr_{kind}"][0]) + 5e-5, name
            off.extend(error > 5e-5)
    assert np.mean(off) <= 0.1


def test_primitives():
    ref = {key: torch.from_numpy(value) for key, value in reference("primitives").items()}
    for case in ("a", "b", "dead", "few"):
        wanted = ref[f"fps_{case}_idx"]
        found = fps(ref[f"fps_{case}_points"][None], len(wanted), skip_near_origin=True)[0]
        if case == "few":  # which dead point repeats once the live ones are used up is left open
            alive = len(set(wanted.tolist()))
            assert found[:alive].tolist() == wanted[:alive].tolist()
        else:
            assert found.tolist() == wanted.tolist(), case
    for radius, samples, name in ((0.2, 8, "r02_s8"), (0.4, 32, "r04_s32")):
        found = ball_query(ref["ball_centers"][None], ref["ball_points"][None], radius, samples)[0]
        assert torch.equal(found.int(), ref[f"ball_idx_{name}"])
    embed = FourierEmbedding(256)
    embed.gauss_B.copy_(ref["fourier_B"])
    embedded = embed(normalize(ref["fourier_xyz"], ref["fourier_min"], ref["fourier_max"]))
    close(embedded[..., ::4], ref["fourier_out_c4"].numpy(), 1e-5)
    close(box_corners(ref["box_center"], ref["box_size"]), ref["box_corners"].numpy(), 1e-5)


def test_generalized_iou():
    ref = {key: torch.from_numpy(value) for key, value in reference("giou").items()}
    center, size = (ref[key].requires_grad_() for key in ("center1", "size1"))
    corners = box_corners(center, size)
    value = generalized_iou(corners, box_corners(ref["center2"], ref["size2"]), ref["nums_k2"])
    close(value, ref["giou"].numpy(), 1e-5)
    (value * ref["weight"]).sum().backward()
    for own, key in ((center, "grad_center1"), (size, "grad_size1")):
        scale = ref[key].abs().max().item()
        close(own.grad, ref[key].numpy(), 1e-5 * max(scale, 1.0), key)
    flat = ref["degenerate_boxes"]
    corners = box_corners(flat[:, :3], flat[:, 3:])
    found = generalized_iou(corners, corners, torch.tensor(len(flat)))
    np.testing.assert_allclose(found.numpy(), ref["degenerate_giou"].numpy(), rtol=1e-5, atol=1e-5)


VARIANTS = {
    "default": {},
    "train_approx": {"least_points": 0},
    "no_nms": {"nms": "none"},
    "nms3d_allcls": {"nms": "all"},
    "nms2d": {"nms": "2d"},
    "old_type": {"over_own": True},
    "argmax_obj": {"all_classes": False},
    "argmax_cls": {"all_classes": False, "by": "class"},
    "conf03_iou05": {"certainty": 0.3, "overlap": 0.5},
    "nonempty": {"nms": "none", "certainty": -1.0},
}


def evaluated(ref, rules):
    """Return which boxes a file's predictions keep, and its scenes as the evaluator takes them."""
    corners = box_corners(*(torch.from_numpy(ref[f"pred_{key}"]) for key in ("center", "size"))).numpy()
    wanted = box_corners(*(torch.from_numpy(ref[f"gt_{key}"]) for key in ("center", "size"))).numpy()
    kept, scenes = [], []
    for row, points in enumerate(ref["points"]):
        scores = (ref["objectness"][row], ref["sem_cls_prob"][row])
        kept.append(kept_boxes(points, corners[row], *scores, rules))
        real = ref["gt_present"][row] > 0
        found = detections(kept[-1], *scores, rules)
        scenes.append(SceneResult(found, corners[row], wanted[row][real], ref["gt_label"][row][real].astype(np.int64)))
    return np.array(kept), scenes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["a", "ties", "nothing"])
def test_evaluator(name, variant):
    ref = reference(f"eval_{name}")
    if f"{variant}/keep" not in ref:
        assert name == "nothing"
        return
    kept, scenes = evaluated(ref, Rules(**VARIANTS[variant]))
    np.testing.assert_array_equal(kept, ref[f"{variant}/keep"])
    if f"{variant}/n_det" in ref:
        assert [len(scene.detected.scores) for scene in scenes] == ref[f"{variant}/n_det"].tolist()
    for field, key in (("classes", "class"), ("boxes", "box"), ("scores", "score")):
        if f"{variant}/det_{key}" in ref:
            found = np.concatenate([getattr(scene.detected, field) for scene in scenes])
            np.testing.assert_array_equal(found, ref[f"{variant}/det_{key}"])
    for threshold in (25, 50):
        if f"ap{threshold}_{variant}" not in ref:
            continue
        score = average_precision(scenes, 18, threshold / 100)
        np.testing.assert_allclose(score.ap, ref[f"ap{threshold}_{variant}"], atol=1e-9)
        np.testing.assert_allclose(score.recall, ref[f"ap{threshold}_recall_{variant}"], atol=1e-9)
        np.testing.assert_allclose(score.mean, ref[f"ap{threshold}_mean_{variant}"], atol=1e-6)
        np.testing.assert_allclose(score.mean_recall, ref[f"ap{threshold}_AR_{variant}"], atol=1e-6)


def test_curve_and_the_eleven_point_rule():
    ref = reference("eval_a")
    _, scenes = evaluated(ref, Rules())
    np.testing.assert_allclose(average_precision(scenes, 18, 0.25, eleven_points=True).ap, ref["ap25_voc07"], atol=1e-9)
    curve = average_precision(scenes, 18, 0.25).curves[2]
    np.testing.assert_allclose(curve.recall, ref["ap_curve_recall_class2"], atol=1e-9)
    np.testing.assert_allclose(curve.precision, ref["ap_curve_precision_class2"], atol=1e-9)


def test_overlap_of_the_evaluator():
    ref = reference("giou")
    corners = [
        box_corners(*(torch.from_numpy(ref[f"{key}{i}"][0]) for key in ("center", "size"))).numpy() for i in (1, 2)
    ]
    defined = ref["iou_eval"] > -100  # the original raised elsewhere
    np.testing.assert_allclose(box_iou(*corners)[defined], ref["iou_eval"][defined], atol=1e-5)
    flat = torch.from_numpy(ref["degenerate_boxes"])
    found = box_iou(*[box_corners(flat[:, :3], flat[:, 3:]).numpy()] * 2)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("item", sorted({key.split("/")[0] for key in np.load(DATA / "dataset.npz") if "/" in key}))
def test_samples(item):
    """What the original data set returns for NumPy's seed: points, colours, targets, with and without augmentation."""
    ref = reference("dataset")
    split, number, seed, *color = item.split("_")
    raw = ref[f"{number}_vert"]
    ids = ref[f"{number}_bbox"][:, 6:].astype(int)
    classes = np.array([[list(CLASSES.values()).index(i)] for i in ids[:, 0]])
    boxes = np.concatenate([ref[f"{number}_bbox"][:, :6], classes, ids], axis=1)
    rng = np.random.RandomState(int(seed.removeprefix("seed")))
    scene = take(whole(raw[:, :3], boxes), 2000, rng, augment=split == "train", least_points=700)
    found = targets_of(scene)
    found["point_clouds"] = scene.points
    if color:
        found["point_clouds"] = np.concatenate([scene.points, centered_colors(raw[scene.rows, 3:])], axis=1)
    corners = [torch.from_numpy(found[f"gt_box_{key}"]) for key in ("centers", "sizes")]
    found["gt_box_corners"] = box_corners(*corners).numpy()
    for name, wanted in ((key.partition("/")[2], value) for key, value in ref.items() if key.startswith(f"{item}/")):
        value = found[name.removesuffix("_n40")]
        value = value[::40] if name.endswith("_n40") else value[: len(wanted)]
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-6, err_msg=name)
    assert not any(value[len(boxes) :].any() for key, value in found.items() if key.startswith("gt_"))
