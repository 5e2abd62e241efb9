"""PCP-MAE, its classifiers and its part segmenter against numbers of the original networks (`data/pcp-mae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from models.pcp_mae import CENTER_LOSSES, centers_of, sinusoids
from tests.parity import test_part_segmenters as segmenters
from tests.parity.test_inter_mae import described
from tests.parity.test_point_mae import check_gradients, filled, thin

DATA = Path(__file__).parent / "data" / "pcp-mae"
PRETRAININGS = {
    "pretrain_rand_cdl2_l2": {},
    "pretrain_block_cdl1_sml1": {
        "loss": "cdl1",
        "pred_loss": "sml1",
        "add_detach": False,
        "pred_pos_transformer_layer": 1,
        "transformer_config": {"mask_type": "block"},
    },
}
CLASSIFIERS = {
    "finetune_modelnet": {},
    "finetune_scan_hardest": {"num_group": 128, "cls_dim": 15},
    "finetune_linear_modelnet": {"head": "linear"},
}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def read(name):
    return dict(np.load(DATA / f"{name}.npz"))


def published(name):
    return json.loads((DATA / f"{name}.json").read_text())


def loaded_whole(report):
    return not (report.missing or report.unexpected or report.ignored)


def test_embedding_of_centers():
    ref = read("posembed")
    points = torch.from_numpy(ref["xyz"])
    for width, name in ((384, "emb"), (96, "emb_96")):
        ours = sinusoids(points, width)
        np.testing.assert_allclose(ours.numpy(), ref[name], rtol=1e-5, atol=1e-6)
        inside = points.abs().amax(-1) < np.pi
        assert inside.any()
        torch.testing.assert_close(centers_of(ours)[inside], points[inside])


def forward(name):
    """Run a reference setting; returns the reference, the model, what `forward` returns, and what the stages give."""
    ref, stages = read(name), {}
    model = filled(NAME="PCP_MAE", **PRETRAININGS[name])
    decoder = model.pred_pos_decoder
    model.MAE_encoder.encoder.register_forward_hook(lambda module, inputs, output: stages.update(tokens=output))
    model.MAE_encoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(normed=output))
    model.MAE_decoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(dec_out=output))
    model.pred_pos_proj.register_forward_hook(lambda module, inputs, output: stages.update(pred_pos=output))
    model.MAE_decoder.register_forward_hook(lambda module, inputs, output: stages.update(position=inputs[1]))
    if decoder is not None:
        decoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(pred_pos_decoder_out=output))
    points, masked = torch.from_numpy(ref["pts"]), torch.from_numpy(ref["mask"]).bool()
    pyramid = model.group(points)
    np.testing.assert_array_equal(pyramid.centers[0].numpy(), ref["center"])
    np.testing.assert_array_equal(pyramid.idx[0].numpy(), ref["knn_idx"])
    out = model(points, masked)
    shown = (~masked).sum(1)[0]
    normed, position = stages.pop("normed"), stages.pop("position")
    stages.update(x_vis=normed[:, :shown], x_mask=normed[:, shown:])
    stages.update(pos_vis=position[:, :shown], pos_masked=position[:, shown:])
    stages.update(gt_pos=sinusoids(out["centers"], 384).unflatten(0, (len(points), -1)))
    return ref, model, out, stages


@pytest.mark.parametrize("name", PRETRAININGS)
def test_pretraining_forward_and_backward(name):
    """Both streams, predicted and true embeddings, positions, rebuilt patches, losses, and the gradients of their sum."""
    ref, model, out, stages = forward(name)
    for stage, values in stages.items():
        expected, ours = thin(ref, stage, values.detach().numpy())
        np.testing.assert_allclose(ours, expected, **CLOSE, err_msg=stage)
    rebuilt = out["rebuilt"].detach().numpy()[:: int(ref["rebuild_stride"])]
    np.testing.assert_allclose(rebuilt, ref["rebuild"], **CLOSE)
    for ours, key in (("loss", "loss"), ("loss_recon", "loss_recon"), ("loss_center", "loss_center_weighted")):
        assert out[ours].item() == pytest.approx(float(ref[key]), rel=1e-5), key
    predicted, true = (stages[key].flatten(0, 1) for key in ("pred_pos", "gt_pos"))
    for kind, each in CENTER_LOSSES.items():
        assert each(predicted, true).mean().item() == pytest.approx(float(ref[f"loss_center_{kind}"]), rel=1e-5), kind
    out["loss"].backward()
    check_gradients(model, ref)


@pytest.mark.parametrize("name", PRETRAININGS)
@pytest.mark.parametrize("term", ["recon", "center"])
def test_gradients_of_one_term(name, term):
    """Which term trains what: the head for centres by its own alone, unless `add_detach` is off; the hidden stream's token likewise."""
    ref, model, out, _ = forward(name)
    out[f"loss_{term}"].backward()
    named = dict(model.named_parameters())
    assert sum(p.grad is not None for p in named.values()) == int(ref[f"n_params_with_grad_{term}"])
    prefix = f"gradnorm_{term}/"
    names = [key.removeprefix(prefix) for key in ref if key.startswith(prefix)]
    assert len(names) > 5
    for key in names:
        grad = named[key].grad
        norm = 0.0 if grad is None else float(grad.double().norm())
        assert norm == pytest.approx(float(ref[prefix + key]), rel=1e-3, abs=1e-7), key
    total = torch.stack([p.grad.double().norm() for p in named.values() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(float(ref[f"gradnorm_{term}_total"]), rel=1e-3)


def test_svm_features():
    """The cloud has points near the origin, which farthest point sampling leaves out as published."""
    ref = read("svm_features")
    model, points = filled(NAME="PCP_MAE"), torch.from_numpy(ref["pts"])
    chosen = points.gather(1, torch.from_numpy(ref["fps_idx"]).long().unsqueeze(-1).expand(-1, -1, 3))
    np.testing.assert_array_equal(model.group(points).centers[0].numpy(), chosen.numpy())
    with torch.no_grad():
        tokens, features = model.patch_tokens(points), model.encode(points)
    np.testing.assert_allclose(tokens.numpy()[:, :: int(ref["tokens_stride"])], ref["tokens_all"], **CLOSE)
    np.testing.assert_allclose(tokens.mean(1).numpy(), ref["feat_mean"], **CLOSE)
    np.testing.assert_allclose(features.numpy(), ref["feat_mean_plus_max"], rtol=1e-4, atol=4e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_forward_and_backward(name):
    ref, stages = read(name), {}
    model = filled(NAME="PCP_MAE_Classifier", **CLASSIFIERS[name])
    if name == "finetune_linear_modelnet":  # as published: the class token and its position train with the head
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("cls" in key)
    model.norm.register_forward_hook(lambda module, inputs, output: stages.update(tokens=output))
    model.cls_head_finetune.register_forward_hook(lambda module, inputs, output: stages.update(cls_feature=inputs[0]))
    logits = model(torch.from_numpy(ref["pts"]))
    expected, ours = thin(ref, "tokens", stages["tokens"].detach().numpy())
    np.testing.assert_allclose(ours, expected, **CLOSE)
    np.testing.assert_allclose(stages["cls_feature"].detach().numpy(), ref["cls_feature"], **CLOSE)
    np.testing.assert_allclose(logits.detach().numpy(), ref["logits"], **CLOSE)
    labels = torch.from_numpy(ref["label"]).long()
    loss = model.loss(logits, labels)
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    loss.backward()
    check_gradients(model, ref, least=4)


def test_segmenter_forward_and_backward():
    ref, stages = read("partseg"), {"taps": []}
    model = filled(NAME="PCP_MAE_SEG")
    model.norm.register_forward_hook(lambda module, inputs, output: stages["taps"].append(inputs[0]))
    model.label_conv.register_forward_hook(lambda module, inputs, output: stages.update(label=output))
    model.propagation_0.register_forward_hook(lambda module, inputs, output: stages.update(features=output))
    log_probs = model(torch.from_numpy(ref["pts"]), torch.from_numpy(ref["cls"]).long())
    head = ref["taps_head"]  # (3, B, first tokens, C)
    taps = torch.stack(stages["taps"]).detach().numpy()
    np.testing.assert_allclose(taps[:, :, : head.shape[2]], head, **CLOSE)
    np.testing.assert_allclose(stages["label"].detach().numpy(), ref["label_feat"][..., 0], **CLOSE)
    channels, points = ref["fp_strides"]
    features = stages["features"].detach().numpy().transpose(0, 2, 1)[:, ::channels, ::points]
    np.testing.assert_allclose(features, ref["fp_out"], **CLOSE)
    every = int(ref["logprob_stride"])
    np.testing.assert_allclose(log_probs.detach().numpy()[:, ::every], ref["logprob"], **CLOSE)
    assert (log_probs.argmax(-1).numpy() == ref["argmax"]).mean() > 0.999
    loss = model.loss(log_probs, torch.from_numpy(ref["target"]).long())
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    loss.backward()
    assert sum(p.grad is not None for p in model.parameters()) == int(ref["n_params_with_grad"])
    names = [key.removeprefix("gradnorm/") for key in ref if key.startswith("gradnorm/")]
    norms = {name: float(ref[f"gradnorm/{name}"]) for name in names}
    segmenters.check_gradients(model, norms, {name: ref[f"gradhead/{name}"] for name in names})


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("pretrain", {"NAME": "PCP_MAE"}),
        ("pretrain_pred_decoder", {"NAME": "PCP_MAE", "pred_pos_transformer_layer": 1}),
        ("partseg", {"NAME": "PCP_MAE_SEG"}),
        *((name, {"NAME": "PCP_MAE_Classifier", **keys}) for name, keys in CLASSIFIERS.items()),
    ],
)
def test_published_keys(name, keys):
    """Names, shapes and order are the published ones, and a published checkpoint loads whole."""
    listed, model = published(f"state_dict_{name}"), build_model(keys)
    assert described(model) == listed["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == listed["parameters"]
    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in listed["state_dict"]}
    layout = {"model_state_dict": weights} if name == "partseg" else {"base_model": weights, "epoch": 300}
    report = load_weights(model, layout)
    assert len(report.used) == len(listed["state_dict"]) and loaded_whole(report)
    assert all(not value.any() for value in model.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["PCP_MAE_Classifier", "PCP_MAE_SEG"])
def test_pretraining_checkpoint_into_what_is_fine_tuned(prefix, name):
    """The encoder moves over, key by key as published; head and class token are missing, 56 tensors are of no use."""
    source, model = filled(NAME="PCP_MAE").state_dict(), build_model({"NAME": name})
    report = load_weights(model, {"base_model": {prefix + key: value for key, value in source.items()}})
    assert len(report.ignored) == 56 and not report.unexpected
    if name == "PCP_MAE_Classifier":
        where = published("finetune_key_source")
        where = where.get("mapping", where)
        assert sorted(report.missing) == sorted(key for key, origin in where.items() if origin is None)
        assert all(torch.equal(model.state_dict()[key], source[where[key]]) for key in report.used)
