"""Point-M2AE against numbers of the original network (`data/point-m2ae`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from models.masking import back_project
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data" / "point-m2ae"
EVALUATIONS = ("pretrain_eval_a", "pretrain_eval_core", "pretrain_eval_noradius")
# Biases straight before a batch norm: their gradient is zero up to rounding in training mode.
BEFORE_NORM = ("first_conv.0.bias", "first_conv.3.bias", "second_conv.0.bias")


@pytest.fixture(scope="module")
def reference():
    return {
        name: dict(np.load(DATA / f"{name}.npz")) for name in (*EVALUATIONS, "pretrain_train_steps", "svm_features")
    }


def filled_model(**keys):
    model = build_model({"NAME": "Point_M2AE", "legacy": True, **keys}).eval()
    fill_state_dict(model.state_dict())
    return model


def check_gradients(model, reference, *, floor, skip=()):
    named = dict(model.named_parameters())
    checked = 0
    for name, norm, head in zip(
        reference["grad_names"], reference["grad_norms"], reference["grad_first8"], strict=True
    ):
        grad = named[str(name)].grad
        if np.isnan(norm):
            assert grad is None, f"{name} should have no gradient"
            continue
        if str(name).endswith(skip or "\0") or (skip and name.startswith("token_prop") and name.endswith("0.bias")):
            continue
        assert float(grad.double().norm()) == pytest.approx(float(norm), rel=1e-3, abs=floor), name
        first = grad.flatten()[:8].double().numpy()
        np.testing.assert_allclose(
            first, head[: len(first)], rtol=1e-2, atol=1e-3 * float(norm) + floor, err_msg=str(name)
        )
        checked += 1
    return checked


@pytest.mark.parametrize("name", EVALUATIONS)
def test_pretraining_forward_and_backward(reference, name):
    ref = reference[name]
    model = filled_model(local_radius=[float(radius) for radius in ref["local_radius"]])
    points = torch.from_numpy(ref["points"])

    pyramid = model.group(points)
    masks = model.mask(pyramid, torch.from_numpy(ref["top_mask"]).bool())
    encoded = model.h_encoder(pyramid, masks)
    for scale in range(3):
        np.testing.assert_array_equal(pyramid.centers[scale].numpy(), ref[f"center{scale}"])
        np.testing.assert_array_equal(pyramid.idx[scale].numpy(), ref[f"knn_idx{scale}"])
        np.testing.assert_array_equal(~masks[scale].visible.numpy(), ref[f"mask{scale}"])
        valid = ref[f"enc_valid{scale}"]
        np.testing.assert_array_equal(masks[scale].valid.numpy(), valid)
        normed = model.h_encoder.encoder_norms[scale](encoded[scale]).detach().numpy()
        np.testing.assert_allclose(normed[valid], ref[f"enc_norm{scale}"][valid], rtol=1e-3, atol=1e-4)

    out = model(points, masked=torch.from_numpy(ref["top_mask"]).bool(), pyramid=pyramid)
    assert out["loss"].item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    np.testing.assert_allclose(out["rebuilt"].detach().numpy(), ref["rec_points"], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(out["target"].numpy(), ref["gt_points"])

    out["loss"].backward()
    assert check_gradients(model, ref, floor=1e-6) == 264


def test_training_steps(reference):
    """Four AdamW steps in training mode: batch statistics, gradients, buffers and weights follow the original."""
    ref = reference["pretrain_train_steps"]
    model = filled_model(drop_path_rate=0.0).train()
    decay = [p for n, p in model.named_parameters() if not (p.dim() == 1 or n.endswith(".bias") or "token" in n)]
    rest = [p for n, p in model.named_parameters() if p.dim() == 1 or n.endswith(".bias") or "token" in n]
    assert (len(rest), len(decay)) == (int(ref["n_no_decay_tensors"]), int(ref["n_decay_tensors"]))
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": float(ref["weight_decay"])}]
    optimizer = torch.optim.AdamW(groups, lr=float(ref["lr"]))

    points = torch.from_numpy(ref["points"])
    for step, masked in enumerate(torch.from_numpy(ref["top_masks"]).bool()):
        optimizer.zero_grad()
        loss = model(points, masked=masked)["loss"]
        assert loss.item() == pytest.approx(float(ref["losses"][step]), rel=1e-5 if step == 0 else 1e-2)
        loss.backward()
        if step == 0:
            assert check_gradients(model, ref, floor=3e-4, skip=BEFORE_NORM) > 200
            buffers = dict(model.named_buffers())
            for name, head in zip(ref["bn_names"], ref["bn_first4_after_step1"], strict=True):
                np.testing.assert_allclose(buffers[str(name)].flatten()[:4].numpy(), head, rtol=1e-3, atol=1e-5)
        optimizer.step()
    named = dict(model.named_parameters())
    for name, norm in zip(ref["param_names"], ref["param_norms_after"], strict=True):
        assert float(named[str(name)].double().norm()) == pytest.approx(float(norm), rel=2e-2, abs=5e-3), name


def test_svm_features(reference):
    ref = reference["svm_features"]
    model = filled_model()
    with torch.no_grad():
        features = model.encode(torch.from_numpy(ref["points"]))
    np.testing.assert_allclose(features.numpy(), ref["features"], rtol=1e-3, atol=1e-4)


def test_default_is_free_of_the_published_faults(reference):
    """Without `legacy`, masks have no flat token 0 and features do not depend on batch mates; with it they do."""
    ref = reference["svm_features"]
    points = torch.from_numpy(ref["points"])
    clean, published = filled_model(legacy=False), filled_model()
    with torch.no_grad():
        alone = [torch.cat([model.encode(cloud[None]) for cloud in points]) for model in (clean, published)]
        torch.testing.assert_close(clean.encode(points), alone[0], rtol=1e-5, atol=1e-5)
        assert (published.encode(points) - alone[1]).abs().max() > 1e-3

    hidden = []
    for name in EVALUATIONS:
        pyramid = clean.group(torch.from_numpy(reference[name]["points"]))
        masked = torch.from_numpy(reference[name]["top_mask"]).bool()
        scales = (back_project(masked, pyramid.idx, [512, 256, 64], flat_token=flag)[1] for flag in (False, True))
        hidden.append([bool(scale[0, 0]) for scale in scales])
    assert any(clean for clean, _ in hidden) and not any(flat for _, flat in hidden)


def test_published_keys():
    """Names, shapes and order are the published ones, and a published checkpoint loads with nothing left over."""
    published = json.loads((DATA / "state_dict_Point_M2AE.json").read_text())
    model = build_model({"NAME": "Point_M2AE"})
    own = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert own == [[key, shape] for key, shape, _ in published["entries"]]
    assert sum(p.numel() for p in model.parameters()) == published["n_parameters"]

    weights = {
        f"module.{key}": torch.zeros(shape, dtype=getattr(torch, dtype.split(".")[-1]))
        for key, shape, dtype in published["entries"]
    }
    report = load_weights(model, {"base_model": weights, "epoch": 300})
    assert len(report.used) == 293
    assert not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())
