"""Inter-MAE, its image branch and its classifiers against numbers of the original networks (`data/inter-mae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from models.images.branch import ImageBranchConfig, build_image_branch
from models.losses import NTXent
from tests.parity.fill import fill_state_dict
from tests.parity.test_point_mae import check_gradients, filled, thin

DATA = Path(__file__).parent / "data" / "inter-mae"
CLASSIFIERS = {
    "finetune_modelnet": {},
    "finetune_scan_hardest": {"num_group": 128, "cls_dim": 15},
}


def read(name):
    return dict(np.load(DATA / f"{name}.npz"))


def published(name):
    return json.loads((DATA / f"state_dict_{name}.json").read_text())


def image_branch():
    """Return the published ViT and its head, with the weights of the reference."""
    branch = build_image_branch(ImageBranchConfig(mode="trained", encoder="vit", weights="none")).eval()
    fill_state_dict(branch.state_dict())
    return branch


def images(batch, phase):
    """Draw the pictures of the reference, (B, 1, 3, 224, 224)."""
    b, c, y, x = np.meshgrid(np.arange(batch), np.arange(3), np.arange(224), np.arange(224), indexing="ij")
    return torch.from_numpy(0.5 + 0.5 * np.sin(0.05 * (b + 1 + phase) * x + 0.03 * (c + 1) * y)).float().unsqueeze(1)


@pytest.fixture(scope="module")
def image_features():
    """Return the projected features of the reference's pictures, (4, 256)."""
    with torch.no_grad():
        return image_branch()(images(4, int(read("pretrain")["image_phase"])))


def test_image_branch(image_features):
    ref = read("pretrain")
    np.testing.assert_allclose(image_features.numpy(), ref["image_feature"], rtol=1e-4, atol=2e-5)


def test_pretraining_forward_and_backward(image_features):
    """Gate, tokens, decoder, global feature, both losses and the gradients of their sum."""
    ref = read("pretrain")
    model = filled(NAME="Inter_MAE")
    stages = {}
    model.MAE_encoder.encoder.register_forward_hook(lambda module, inputs, output: stages.update(tokens=output))
    model.MAE_encoder.register_forward_hook(lambda module, inputs, output: stages.update(x_vis=output))
    model.MAE_decoder.norm.register_forward_hook(lambda module, inputs, output: stages.update(decoder_all=output))
    model.pro_head.register_forward_hook(lambda module, inputs, output: stages.update(pooled=inputs[0], feature=output))
    out = model(torch.from_numpy(ref["pts"]), masked=torch.from_numpy(ref["mask"]), targets=image_features)
    for name in ("tokens", "x_vis", "decoder_all"):
        expected, ours = thin(ref, name, stages[name].detach().numpy())
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(stages["pooled"].detach().numpy(), ref["pc_global"], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(stages["feature"].detach().numpy(), ref["pc_feature"], rtol=1e-4, atol=2e-5)
    rebuilt = out["rebuilt"].detach().numpy()[:: int(ref["rebuild_stride"])]
    np.testing.assert_allclose(rebuilt, ref["rebuild"], rtol=1e-4, atol=2e-5)

    assert out["loss_pc"].item() == pytest.approx(float(ref["loss_pc"]), rel=1e-5)
    assert out["loss_fea"].item() == pytest.approx(float(ref["loss_fea"]), rel=1e-5)
    assert 1e4 * out["loss_fea"].item() == pytest.approx(float(ref["ntxent"]), rel=1e-5)
    assert out["loss"].item() == pytest.approx(float(ref["loss_pc"]) + float(ref["loss_fea"]), rel=1e-5)
    out["loss"].backward()
    check_gradients(model, {key: value for key, value in ref.items() if not key.startswith("fea_only/")})


def test_gradient_of_the_contrastive_term_alone(image_features):
    ref = read("pretrain")
    alone = {key.removeprefix("fea_only/"): value for key, value in ref.items() if key.startswith("fea_only/")}
    model = filled(NAME="Inter_MAE")
    out = model(torch.from_numpy(ref["pts"]), masked=torch.from_numpy(ref["mask"]), targets=image_features)
    out["loss_fea"].backward()
    named = dict(model.named_parameters())
    assert sum(p.grad is not None for p in named.values()) == int(alone["n_params_with_grad"])
    for key in (key for key in alone if key.startswith("gradnorm/")):
        grad, norm = named[key.removeprefix("gradnorm/")].grad, float(alone[key])
        assert float(grad.double().norm()) == pytest.approx(norm, rel=1e-3), key
        head = alone[key.replace("gradnorm", "gradhead")]
        np.testing.assert_allclose(grad.flatten()[: len(head)].numpy(), head, rtol=1e-2, atol=1e-3 * norm)
    total = torch.stack([p.grad.double().norm() for p in named.values() if p.grad is not None]).norm()
    assert float(total) == pytest.approx(float(alone["gradnorm_total"]), rel=1e-3)


def test_gate():
    """Only what a point says about itself is left of the attention, and the option takes all of it."""
    ref = read("pretrain")
    gate = filled(NAME="Inter_MAE").MAE_encoder.encoder.first_trans
    members = torch.from_numpy(ref["gate_in"]).transpose(1, 2)  # (2, K, C)
    with torch.no_grad():
        ours = gate(members).transpose(1, 2).numpy()
        np.testing.assert_allclose(ours, ref["gate_out"], rtol=1e-4, atol=2e-5)
        attention = (gate.q_conv(members) @ gate.k_conv(members).transpose(1, 2)).softmax(-1)
        np.testing.assert_allclose(attention.sum(-1).numpy(), 1, atol=1e-6)
        gate.gate = "attention"
        torch.testing.assert_close(gate(members), attention @ members)


def test_contrastive_loss():
    ref = read("ntxent")
    a, b = (torch.from_numpy(ref[key]).requires_grad_() for key in "ab")
    loss = NTXent(float(ref["temperature"]))(a, b)
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    loss.backward()
    scale = float(np.linalg.norm(ref["grad_a"]))
    np.testing.assert_allclose(a.grad.numpy(), ref["grad_a"], rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_logits(name):
    ref = read(name)
    model = filled(NAME="Inter_MAE_Classifier", **CLASSIFIERS[name])
    with torch.no_grad():
        logits = model(torch.from_numpy(ref["pts"]))
    np.testing.assert_allclose(logits.numpy(), ref["logits"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name, keys", [("pretrain", {"NAME": "Inter_MAE"})] + [
    (name, {"NAME": "Inter_MAE_Classifier", **keys}) for name, keys in CLASSIFIERS.items()
])  # fmt: skip
def test_published_keys(name, keys):
    """Names, shapes and order are the published ones, and a published checkpoint loads whole."""
    listed, model = published(name), build_model(keys)
    assert described(model) == listed["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == listed["parameters"]
    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in listed["state_dict"]}
    report = load_weights(model, {"base_model": weights, "epoch": 300})
    assert len(report.used) == len(listed["state_dict"])
    assert not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())


def test_published_keys_of_the_image_branch():
    listed, branch = published("image_branch"), image_branch()
    assert described(branch) == listed["state_dict"]
    assert sum(p.numel() for p in branch.parameters()) == listed["parameters"]


def described(model):
    return [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_pretraining_checkpoint_into_a_classifier(prefix):
    """The encoder moves over with its gate; class token and head are missing, decoder and heads are of no use, as published."""
    listed = published("pretrain")["state_dict"]
    listed = [*listed, ["image_branch.inv_head.0.weight", [512, 384], "float32"]]  # as our own checkpoints hold it
    model = build_model({"NAME": "Inter_MAE_Classifier"})
    report = load_weights(model, {"base_model": {prefix + key: torch.full(shape, 7.0) for key, shape, _ in listed}})
    assert {key.split(".")[0] for key in report.missing} == {"cls_token", "cls_pos", "cls_head_finetune"}
    assert {key.split(".")[0] for key in report.ignored} == {
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed",
        "MAE_decoder",
        "pro_head",
        "pre_head",
        "image_branch",
    }
    assert not report.unexpected and (model.encoder.first_trans.q_conv.weight == 7).all()
