"""Part segmenters against numbers of the original networks (`data/*/partseg.npz`, weights from `fill.py`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model, load_weights
from tests.parity.fill import fill_state_dict

DATA = Path(__file__).parent / "data"
LISTS = {
    "Point_M2AE_SEG": DATA / "point-m2ae" / "state_dict_Point_M2AE_SEG.json",
    "Point_MAE_SEG": DATA / "point-mae" / "state_dict_partseg.json",
}
PRETRAINING = {
    "Point_M2AE_SEG": DATA / "point-m2ae" / "state_dict_Point_M2AE.json",
    "Point_MAE_SEG": DATA / "point-mae" / "state_dict_pretrain.json",
}


def entries(path):
    """Return (key, shape, dtype) of a published list, and its number of parameters."""
    published = json.loads(path.read_text())
    listed = next(value for value in published.values() if isinstance(value, list))
    return [(key, shape, dtype) for key, shape, dtype in listed], published.get("n_parameters") or published[
        "parameters"
    ]


def filled(name):
    model = build_model({"NAME": name}).eval()
    fill_state_dict(model.state_dict())
    return model


def check_gradients(model, norms, heads):
    """Compare norms, and first values as far as near ties of maxima, which rounding decides, let them agree."""
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    for key, norm in norms.items():
        grad, head = gradients[key].double(), heads[key]
        assert float(grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-6), key
        first = grad.flatten()[: len(head)].numpy()
        np.testing.assert_allclose(first, head[: len(first)], rtol=1e-2, atol=3e-3 * norm + 1e-6, err_msg=key)


def test_point_m2ae_forward_and_backward():
    """Every number of the reference, in eval mode: centres, tokens, features of points, log-probabilities, loss, gradients."""
    ref = dict(np.load(DATA / "point-m2ae" / "partseg.npz"))
    model = filled("Point_M2AE_SEG")
    found = {}
    for scale, propagation in enumerate(model.propagations):
        propagation.register_forward_hook(
            lambda module, inputs, output, scale=scale: found.update({scale: (*inputs[1:], output)})
        )
    log_probs = model(torch.from_numpy(ref["points"]), torch.from_numpy(ref["category"]))
    for scale, step in enumerate((32, 16, 4)):
        centers, tokens, features = (value.detach().numpy() for value in found[scale])
        np.testing.assert_array_equal(centers, ref[f"center{scale}"])
        np.testing.assert_allclose(tokens[:, ::step], ref[f"enc_norm{scale}__t{step}"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(features[:, ::64, ::16], ref[f"fp{scale}__p64"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(log_probs.detach().numpy()[:, ::8], ref["log_probs__p8"], rtol=1e-4, atol=2e-5)
    assert (log_probs.argmax(-1).numpy() == ref["argmax"]).mean() > 0.999  # near ties may turn

    loss = model.loss(log_probs, torch.from_numpy(ref["target"]).long())
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    loss.backward()
    names = [str(name) for name in ref["grad_names"]]
    assert sorted(names) == sorted(key for key, parameter in model.named_parameters() if parameter.grad is not None)
    norms = dict(zip(names, ref["grad_norms"].tolist(), strict=True))
    check_gradients(model, norms, dict(zip(names, ref["grad_first8"], strict=True)))


def test_point_mae_forward_and_backward():
    ref = dict(np.load(DATA / "point-mae" / "partseg.npz"))
    model = filled("Point_MAE_SEG")
    found = {"taps": []}
    model.norm.register_forward_hook(lambda module, inputs, output: found["taps"].append(inputs[0]))
    model.label_conv.register_forward_hook(lambda module, inputs, output: found.update(label=output))
    model.propagation_0.register_forward_hook(lambda module, inputs, output: found.update(features=output))
    log_probs = model(torch.from_numpy(ref["pts"]), torch.from_numpy(ref["cls"]).long())
    close = {"rtol": 1e-4, "atol": 2e-5}
    taps = torch.stack(found["taps"]).detach().numpy()
    head = ref["taps_head"]  # (3, B, first tokens, C)
    np.testing.assert_allclose(taps[:, :, : head.shape[2]], head, **close)
    np.testing.assert_allclose(found["label"].detach().numpy(), ref["label_feat"][..., 0], **close)
    channels, points = ref["fp_strides"]
    features = found["features"].detach().numpy().transpose(0, 2, 1)[:, ::channels, ::points]
    np.testing.assert_allclose(features, ref["fp_out"], **close)
    every = int(ref["logprob_stride"])
    np.testing.assert_allclose(log_probs.detach().numpy()[:, ::every], ref["logprob"], **close)
    assert (log_probs.argmax(-1).numpy() == ref["argmax"]).mean() > 0.999

    loss = model.loss(log_probs, torch.from_numpy(ref["target"]).long())
    assert loss.item() == pytest.approx(float(ref["loss"]), rel=1e-5)
    loss.backward()
    assert sum(p.grad is not None for p in model.parameters()) == int(ref["n_params_with_grad"])
    names = [key.removeprefix("gradnorm/") for key in ref if key.startswith("gradnorm/")]
    assert len(names) > 3
    norms = {name: float(ref[f"gradnorm/{name}"]) for name in names}
    check_gradients(model, norms, {name: ref[f"gradhead/{name}"] for name in names})


@pytest.mark.parametrize("name", LISTS)
def test_published_keys(name):
    """Names, shapes and order are the published ones, and a published part-segmentation checkpoint loads whole."""
    published, parameters = entries(LISTS[name])
    model = build_model({"NAME": name})
    own = [
        (key, list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in model.state_dict().items()
    ]
    assert own == [(key, shape, dtype.removeprefix("torch.")) for key, shape, dtype in published]
    assert sum(p.numel() for p in model.parameters()) == parameters

    weights = {f"module.{key}": torch.zeros(shape) for key, shape, _ in published}
    layout = {"epoch": 299, "train_acc": 0.9, "test_acc": 0.9, "class_avg_iou": 0.8, "inctance_avg_iou": 0.8}
    report = load_weights(model, {**layout, "model_state_dict": weights, "optimizer_state_dict": {}})
    assert len(report.used) == len(published)
    assert not (report.missing or report.unexpected or report.ignored)
    assert all(not value.any() for value in model.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", LISTS)
def test_pretraining_checkpoint(name, prefix):
    """A published pre-training checkpoint fills the encoder with its norms; the head is what is missing, the decoder of no use."""
    published, _ = entries(PRETRAINING[name])
    weights = {prefix + key: torch.full(shape, 7.0) for key, shape, _ in published}
    model = build_model({"NAME": name})
    report = load_weights(model, {"base_model": weights, "epoch": 300})
    head = ("label_conv.", "propagation", "convs", "bns")
    assert report.missing == [key for key in model.state_dict() if key.startswith(head)]
    assert report.used == [key for key in model.state_dict() if not key.startswith(head)]
    assert not report.unexpected and len(report.ignored) + len(report.used) == len(published)
    assert all((model.state_dict()[key] == 7).all() for key in report.used)
    assert sum(p.numel() for p in model.encoder_parameters()) == sum(
        value.numel() for key, value in model.state_dict().items() if key in report.used and "running" not in key and "num_" not in key
    )  # fmt: skip
